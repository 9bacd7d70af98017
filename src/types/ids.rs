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
        self.0[..4].iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl std::fmt::Debug for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Principal({}…)", self.prefix())
    }
}

/// What kind of thing an answer depends on. With an id ([`Tag::of`]) it is one thing, without
/// ([`Tag::all`]) it is every thing of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TagKind {
    /// API keys, sites' access and app switches: whether a caller may see anything at all.
    Access = 1,
    /// What `info`, `parameters`, `meta` and `site` say of an app.
    AppMetadata,
    /// Names of accounts (`author_name`, `created_by` in many answers).
    Accounts,
    /// Conversations and messages; with an id, those of one `user` of the service API.
    Conversations,
    /// Conversations and messages that the web app shows.
    WebConversations,
    /// Annotations of apps.
    Annotations,
    /// Workflow logs and runs.
    WorkflowLogs,
    /// Data sets, documents, segments, metadata, tags; with an id, those of one data set.
    Datasets,
    /// Model providers and models.
    Models,
    /// Things set for the whole installation (system features, version).
    System,
    /// Files.
    Files,
    /// Feedback on messages.
    Feedbacks,
    /// What is at one path, whatever it is: an unsafe request to a path ends what is stored for it
    /// (RFC 9111 section 4.4). Always with an id, the path.
    Target,
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

    /// One thing of a kind; the id is compared without regard to ASCII case (Dify accepts UUIDs in both).
    pub fn of(kind: TagKind, id: &[u8]) -> Self {
        // FNV-1a: stable across processes, and a collision only costs a miss.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in std::iter::once(kind as u8).chain(id.iter().map(u8::to_ascii_lowercase)) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}
