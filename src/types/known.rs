//! Names of things that exist in Dify or do not: what the guard is asked about.
//!
//! `classify` finds them in a request, the guard's sources find them in the database or in Dify's answers; both must
//! get the same [`KnownId`] for the same thing. Never the credential itself: of keys and codes there is a digest.

macro_rules! id_kinds {
    ($($(#[$meta:meta])* $kind:ident = $name:literal),+ $(,)?) => {
        /// What sort of thing an id is of.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum IdKind { $($(#[$meta])* $kind),+ }

        impl IdKind {
            /// Every kind; `kind as usize` is its place.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name that operators use; a metric's label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }
        }
    };
}

id_kinds! {
    /// An app's key (`app-…`), as a digest.
    AppKey = "app_key",
    /// A key for data sets (`dataset-…`), as a digest.
    DatasetKey = "dataset_key",
    /// An app.
    App = "app",
    /// The code of a web app, as a digest.
    SiteCode = "site_code",
    /// A data set.
    Dataset = "dataset",
    /// A document.
    Document = "document",
    /// A segment of a document.
    Segment = "segment",
    /// A child chunk of a segment.
    ChildChunk = "child_chunk",
    /// A conversation.
    Conversation = "conversation",
    /// A message.
    Message = "message",
    /// An uploaded file.
    UploadFile = "upload_file",
    /// A run of a workflow.
    WorkflowRun = "workflow_run",
    /// An annotation.
    Annotation = "annotation",
    /// The code of an app as an MCP server, as a digest.
    McpServer = "mcp_server",
    /// The id of a webhook trigger, as a digest.
    Webhook = "webhook",
}

/// One thing of a kind: the bytes of a UUID, or a digest of any other text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KnownId(pub [u8; 16]);

impl KnownId {
    /// Of a UUID as text: 32 hexadecimal digits of either case, with hyphens at the places of RFC 9562 section 4.
    pub fn of_uuid(text: &[u8]) -> Option<Self> {
        const HYPHENS: [usize; 4] = [8, 13, 18, 23];
        if text.len() != 36 {
            return None;
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (at, byte) in text.iter().enumerate() {
            if HYPHENS.contains(&at) {
                if *byte != b'-' {
                    return None;
                }
                continue;
            }
            let digit = (*byte as char).to_digit(16)? as u8;
            bytes[digits / 2] = bytes[digits / 2] << 4 | digit;
            digits += 1;
        }
        Some(Self(bytes))
    }

    /// Of a thing as its kind is named: by a UUID or by any text.
    pub fn of_kind(kind: IdKind, text: &[u8]) -> Option<Self> {
        match kind {
            IdKind::AppKey | IdKind::DatasetKey | IdKind::SiteCode | IdKind::McpServer | IdKind::Webhook => {
                Some(Self::of_text(text))
            }
            _ => Self::of_uuid(text),
        }
    }

    /// Of a key or code.
    pub fn of_text(text: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(text).as_bytes()[..16]);
        Self(bytes)
    }
}

/// Reads any bytes as a UUID: one that is taken is the text that was given.
#[cfg(any(test, fuzzing))]
pub fn read_anything(bytes: &[u8]) {
    let Some(KnownId(id)) = KnownId::of_uuid(bytes) else {
        return;
    };
    let digits: Vec<_> = bytes.iter().filter(|byte| **byte != b'-').copied().collect();
    assert_eq!((bytes.len(), digits.len()), (36, 32));
    assert!(super::ids::hex(&id).as_bytes().eq_ignore_ascii_case(&digits));
}

impl std::fmt::Debug for KnownId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownId({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{IdKind, KnownId, read_anything};

    #[test]
    fn a_uuid_is_the_same_in_either_case() {
        let text = "5f0e7a3c-0000-4000-8000-0000000000Ab";
        let id = KnownId::of_uuid(text.as_bytes()).expect("a UUID");
        assert_eq!(id.0[..4], [0x5f, 0x0e, 0x7a, 0x3c]);
        assert_eq!(Some(id), KnownId::of_uuid(text.to_lowercase().as_bytes()));
    }

    #[test]
    fn what_is_no_uuid_has_no_id() {
        for text in [
            "",
            "5f0e7a3c00004000800000000000000a",
            "5f0e7a3c-0000-4000-8000-00000000000g",
        ] {
            assert_eq!(KnownId::of_uuid(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn kinds_are_in_their_places() {
        assert!(
            IdKind::ALL
                .iter()
                .enumerate()
                .all(|(place, kind)| place == *kind as usize)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_uuid_or_none(
            text in "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
            at in 0..36usize,
            byte: u8,
        ) {
            let mut bytes = text.into_bytes();
            read_anything(&bytes);
            prop_assert!(KnownId::of_uuid(&bytes).is_some());
            let is_digit = bytes[at] != b'-';
            let fits = if is_digit { byte.is_ascii_hexdigit() } else { byte == b'-' };
            bytes[at] = byte;
            read_anything(&bytes);
            prop_assert_eq!(KnownId::of_uuid(&bytes).is_some(), fits);
            bytes.truncate(at);
            prop_assert_eq!(KnownId::of_uuid(&bytes), None);
        }
    }
}
