//! Identities that caching turns on: who asks ([`Principal`]) and what an answer depends on ([`Tag`]).

use smallvec::SmallVec;

/// Digest of everything in a request that selects whose answer it gets. Never the credential itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal(pub [u8; 16]);

impl Principal {
    /// The principal of a public route: everyone.
    pub const PUBLIC: Self = Self([0; 16]);

    /// The first 32 bits in hexadecimal: enough to tell callers apart in a log, too little to find a key.
    pub fn prefix(&self) -> String {
        self.to_hex()[..8].to_owned()
    }

    /// The whole digest in hexadecimal, 32 digits.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

impl std::fmt::Debug for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Principal({}…)", self.prefix())
    }
}

macro_rules! tag_kinds {
    ($($(#[$meta:meta])* $kind:ident = $name:literal),+ $(,)?) => {
        /// What kind of thing an answer depends on. With an id ([`Tag::of`]) it is one thing, without
        /// ([`Tag::all`]) it is every thing of the kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum TagKind { $($(#[$meta])* $kind),+ }

        impl TagKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The name that operators use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }
        }
    };
}

tag_kinds! {
    /// API keys, sites' access and app switches: whether a caller may see anything at all.
    Access = "access",
    /// What `info`, `parameters`, `meta` and `site` say of an app.
    AppMetadata = "app_metadata",
    /// Names of accounts (`author_name`, `created_by` in many answers).
    Accounts = "accounts",
    /// Conversations and messages; with an id, those of one `user` of the service API.
    Conversations = "conversations",
    /// Conversations and messages that the web app shows.
    WebConversations = "web_conversations",
    /// Annotations of apps.
    Annotations = "annotations",
    /// Workflow logs and runs.
    WorkflowLogs = "workflow_logs",
    /// Data sets, documents, segments, metadata, tags; with an id, those of one data set.
    Datasets = "datasets",
    /// Model providers and models.
    Models = "models",
    /// Things set for the whole installation (system features, version).
    System = "system",
    /// Files.
    Files = "files",
    /// Feedback on messages.
    Feedbacks = "feedbacks",
    /// What is at one path, whatever it is: an unsafe request to a path ends what is stored for it
    /// (RFC 9111 section 4.4). Always with an id, the path.
    Target = "target",
    /// Answers of one route; with its template as id. Only purges end it.
    Route = "route",
    /// Answers to one principal; with its digest in hexadecimal as id. Only purges end it.
    Principal = "principal",
    /// Answers under keys that begin alike; with the first eight hexadecimal digits as id. Only purges end it.
    Key = "key",
}

/// One dependency of a stored answer: a write that bumps the tag ends the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// The tags of one request; few, so kept inline.
pub type Tags = SmallVec<[Tag; 4]>;

impl Tag {
    /// Everything of a kind.
    pub fn all(kind: TagKind) -> Self {
        Self::of(kind, b"")
    }

    /// A tag as operators write it: `datasets`, or `datasets:ID` for one of them.
    ///
    /// # Errors
    /// A sentence that names the kinds there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, id) = text.split_once(':').unwrap_or((text, ""));
        let kind = TagKind::ALL.iter().find(|kind| kind.as_str() == name);
        let kind = kind.ok_or_else(|| {
            let names: Vec<_> = TagKind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("no tag is called `{name}`; there are {}", names.join(", "))
        })?;
        Ok(Self::of(*kind, id.as_bytes()))
    }

    /// One thing of a kind; the id is compared without regard to ASCII case (Dify accepts UUIDs in both).
    pub fn of(kind: TagKind, id: &[u8]) -> Self {
        // FNV-1a: stable across processes, and a collision only costs a miss.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in std::iter::once(kind as u8 + 1).chain(id.iter().map(u8::to_ascii_lowercase)) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

/// Documents that Dify works on together in the background, by 24 bits of a digest of the batch's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batch(u32);

impl Batch {
    /// The batch that Dify calls so.
    pub fn named(name: &[u8]) -> Self {
        let hash = Tag::of(TagKind::Datasets, name).0;
        // Never 0, which stands for no batch.
        Self((((hash ^ (hash >> 32)) & 0xff_ffff) as u32).max(1))
    }

    /// The batch with this digest; `None` for what is none.
    pub fn from_digest(digest: u32) -> Option<Self> {
        (1..=0xff_ffff).contains(&digest).then_some(Self(digest))
    }

    /// The digest: 24 bits, never 0.
    pub fn digest(self) -> u32 {
        self.0
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

/// The digest that 32 hexadecimal digits of either case stand for.
pub fn from_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_written_with_its_kind_and_id() {
        assert_eq!(Tag::parse("datasets"), Ok(Tag::all(TagKind::Datasets)));
        assert_eq!(Tag::parse("datasets:A1"), Ok(Tag::of(TagKind::Datasets, b"a1")));
        assert_eq!(Tag::parse("target:/a:b"), Ok(Tag::of(TagKind::Target, b"/a:b")));
        let error = Tag::parse("dataset:1").expect_err("no such kind");
        assert!(
            error.contains("`dataset`") && error.contains("web_conversations"),
            "{error}"
        );
    }

    #[test]
    fn a_digest_goes_to_hexadecimal_and_back() {
        let digest: [u8; 16] = std::array::from_fn(|i| i as u8 * 17);
        assert_eq!(from_hex(&hex(&digest)), Some(digest));
        assert_eq!(from_hex(&hex(&digest).to_uppercase()), Some(digest));
        for wrong in ["", "00", &"g".repeat(32), &"+1".repeat(16)] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
