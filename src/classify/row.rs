//! What one row of the route table says, and the words that the table is written in.
//!
//! A row joins a template with a [`Profile`] (class, caching, lane, time limit), with whom its answers are
//! for, and with the tags that they carry (`fills`) or end (`ends`). The data is in `dify_routes`.

use http::Method;

use crate::types::ids::TagKind;
use crate::types::outcome::RouteClass;
use crate::types::request::{CacheClass, Lane, Learn};

use super::asks::Wants;

/// One rule of dify-api, or the part of it that some methods share.
#[derive(Debug)]
pub(crate) struct Row {
    /// Path with converters as werkzeug has them: `{x}` (no slash), `{x:uuid}`, `{x:path}`.
    pub(crate) template: &'static str,
    pub(crate) methods: Methods,
    pub(crate) profile: Profile,
    pub(crate) who: Who,
    /// What answers depend on, beside [`TagKind::Access`], which every stored answer carries.
    pub(crate) fills: &'static [TagRule],
    /// What a request changes.
    pub(crate) ends: &'static [TagRule],
    /// What a request makes Dify change in the background after it has answered: those of data sets count.
    pub(crate) begins: &'static [TagRule],
    /// What may be waiting for the batch of documents whose progress the answer tells.
    pub(crate) tells: &'static [TagRule],
    /// What must exist for the request to succeed: told by the template alone.
    pub(crate) asks: Wants,
    /// What a successful answer tells of what exists.
    pub(crate) learns: &'static [Learn],
}

/// A set of methods. HEAD is served like GET; OPTIONS is in no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Methods(u8);

impl Methods {
    pub(crate) const GET: Self = Self(1);
    pub(crate) const POST: Self = Self(2);
    pub(crate) const PUT: Self = Self(4);
    pub(crate) const PATCH: Self = Self(8);
    pub(crate) const DELETE: Self = Self(16);
    pub(crate) const WRITES: Self = Self(2 | 4 | 8 | 16);
    pub(crate) const ANY: Self = Self(31);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set that a request's method belongs to; empty for OPTIONS and what Dify does not know.
    pub(crate) fn of(method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD => Self::GET,
            Method::POST => Self::POST,
            Method::PUT => Self::PUT,
            Method::PATCH => Self::PATCH,
            Method::DELETE => Self::DELETE,
            _ => Self(0),
        }
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Which credentials select the answer, and whether it can be kept without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The holder of the one `Authorization` value; without exactly one nobody.
    Bearer,
    /// A visitor of a web app: passport cookie or header, with all that Dify reads beside it.
    Web,
    /// An account of the console; without any credential nobody.
    Console,
    /// Everybody, unless credentials are sent: then whoever sends the same.
    Open,
    /// The same where it is not known which fields carry credentials.
    Unknown,
}

/// Which time limit of the upstream's configuration holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `timeouts.total`.
    Short,
    /// `timeouts.write`.
    Write,
    /// No total; `timeouts.idle` between two reads.
    Idle,
    /// `timeouts.write`, and more by the declared length of the body; `timeouts.idle` between two reads.
    BySize,
}

/// How to get from a request to its tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagRule {
    /// Everything of a kind.
    All(TagKind),
    /// A part of a kind that has a name of its own.
    Named(TagKind, &'static str),
    /// What belongs to the `user` that the request names. A read carries that and everything of the kind; a
    /// write ends that, or everything of the kind when the user is not known.
    OfUser(TagKind),
    /// What belongs to the first variable of the path. A read carries that and everything of the kind.
    OfId(TagKind),
}

impl TagRule {
    pub(crate) fn kind(self) -> TagKind {
        match self {
            Self::All(kind) | Self::Named(kind, _) | Self::OfUser(kind) | Self::OfId(kind) => kind,
        }
    }
}

/// What rows of one sort share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) class: RouteClass,
    pub(crate) cache: CacheClass,
    pub(crate) lane: Lane,
    pub(crate) limit: Limit,
}

/// The profiles that rows name.
pub(crate) mod profile {
    use super::{CacheClass, Lane, Limit, Profile, RouteClass};

    const fn of(class: RouteClass, cache: CacheClass, lane: Lane, limit: Limit) -> Profile {
        Profile {
            class,
            cache,
            lane,
            limit,
        }
    }
    use {CacheClass as C, Lane as L, Limit as T, RouteClass as R};

    /// A small fact, kept.
    pub(crate) const META: Profile = of(R::Metadata, C::Metadata, L::Short, T::Short);
    /// A list or detail, kept shortly.
    pub(crate) const LIST: Profile = of(R::Listing, C::Listing, L::Short, T::Short);
    /// A workflow run, kept once it has ended.
    pub(crate) const RUN: Profile = of(R::Listing, C::Run, L::Short, T::Short);
    /// A read that is not kept; some (exports, statistics, estimates) take long.
    pub(crate) const DETAIL: Profile = of(R::Listing, C::Never, L::Short, T::Write);
    /// A small file that everybody may have, kept as long as the origin says.
    pub(crate) const ASSET: Profile = of(R::File, C::Origin, L::Short, T::Write);
    /// A file that is kept as long as the origin says.
    pub(crate) const STORED_FILE: Profile = of(R::File, C::Origin, L::Upload, T::Idle);
    /// A file that is not kept.
    pub(crate) const FILE: Profile = of(R::File, C::Never, L::Upload, T::Idle);
    /// A model or workflow at work.
    pub(crate) const GENERATE: Profile = of(R::Generation, C::Never, L::Generation, T::Idle);
    /// A file, or a whole document as text, on its way in.
    pub(crate) const UPLOAD: Profile = of(R::Upload, C::Never, L::Upload, T::BySize);
    /// A change of state.
    pub(crate) const WRITE: Profile = of(R::Write, C::Never, L::Short, T::Write);
    /// A change of state during which Dify waits for somebody else: a provider, a market place.
    pub(crate) const SLOW_WRITE: Profile = of(R::Write, C::Never, L::Short, T::Idle);
    /// Log-in and tokens; providers of identities may be asked.
    pub(crate) const AUTH: Profile = of(R::Auth, C::Never, L::Short, T::Write);
    /// A question about log-in that Dify answers alone.
    pub(crate) const AUTH_READ: Profile = of(R::Auth, C::Never, L::Short, T::Short);
    /// The progress of work.
    pub(crate) const TASK: Profile = of(R::TaskStatus, C::Never, L::Short, T::Short);
    /// Probes and diagnostics.
    pub(crate) const HEALTH: Profile = of(R::Health, C::Never, L::Short, T::Short);
    /// What is behind the rule is not known.
    pub(crate) const PASS: Profile = of(R::Passthrough, C::Never, L::Short, T::Idle);
}

/// Named sets of tags that answers carry.
pub(crate) mod fills {
    use super::{TagKind as K, TagRule, TagRule::*};

    pub(crate) const NONE: &[TagRule] = &[];
    /// Facts about an app.
    pub(crate) const APP: &[TagRule] = &[All(K::AppMetadata)];
    /// Facts about an app, with its author's name.
    pub(crate) const INFO: &[TagRule] = &[All(K::AppMetadata), All(K::Accounts)];
    /// Facts about the installation.
    pub(crate) const SYSTEM: &[TagRule] = &[All(K::System)];
    /// Which models there are.
    pub(crate) const MODELS: &[TagRule] = &[All(K::Models)];
    /// Conversations and messages of one `user`.
    pub(crate) const TALK: &[TagRule] = &[OfUser(K::Conversations)];
    /// Conversations and messages of one visitor.
    pub(crate) const WEB_TALK: &[TagRule] = &[All(K::WebConversations)];
    pub(crate) const FEEDBACKS: &[TagRule] = &[All(K::Feedbacks)];
    pub(crate) const ANNOTATIONS: &[TagRule] = &[All(K::Annotations)];
    /// Logs of workflows, with the names of accounts that ran them.
    pub(crate) const LOGS: &[TagRule] = &[All(K::WorkflowLogs), All(K::Accounts)];
    pub(crate) const FILE: &[TagRule] = &[All(K::Files)];
    /// Lists over data sets, with their authors' names.
    pub(crate) const DATASETS: &[TagRule] = &[All(K::Datasets), Named(K::Datasets, "list"), All(K::Accounts)];
    /// One data set, with its author's name.
    pub(crate) const DATASET: &[TagRule] = &[OfId(K::Datasets), All(K::Accounts)];
    /// Documents and segments.
    pub(crate) const DOCUMENTS: &[TagRule] = &[OfId(K::Datasets)];
}

/// Named sets of tags that requests end.
pub(crate) mod ends {
    use super::{TagKind as K, TagRule, TagRule::*};

    pub(crate) const NONE: &[TagRule] = &[];
    /// Who may see what; since every stored answer carries it, everything.
    pub(crate) const ACCESS: &[TagRule] = &[All(K::Access)];
    /// Anything about apps; data sets count the apps that use them.
    pub(crate) const APPS: &[TagRule] = &[All(K::AppMetadata), All(K::Datasets)];
    pub(crate) const ACCOUNTS: &[TagRule] = &[All(K::Accounts)];
    /// Model providers: models, tools' icons, whether a data set can be searched.
    pub(crate) const PROVIDERS: &[TagRule] = &[All(K::Models), All(K::AppMetadata), All(K::Datasets)];
    /// Plugins may bring anything that [`PROVIDERS`] names, and features.
    pub(crate) const PLUGINS: &[TagRule] = &[
        All(K::Models),
        All(K::AppMetadata),
        All(K::Datasets),
        All(K::System),
    ];
    /// A message of a `user`. How often annotations and segments were found is counted beside the request: that
    /// shows when an answer's lifetime ends.
    pub(crate) const CHAT: &[TagRule] = CONVERSE;
    /// The same where the user is somebody else's to know.
    pub(crate) const WEB_CHAT: &[TagRule] = WEB_CONVERSE;
    /// A call from outside that runs an app or a workflow.
    pub(crate) const INVOKE: &[TagRule] = &[
        All(K::Conversations),
        All(K::WebConversations),
        All(K::Annotations),
        All(K::WorkflowLogs),
    ];
    pub(crate) const WORKFLOW: &[TagRule] = &[All(K::WorkflowLogs)];
    /// A pipeline at work: it writes documents.
    pub(crate) const PIPELINE: &[TagRule] = &[All(K::Datasets), All(K::WorkflowLogs)];
    /// A change of a conversation.
    pub(crate) const CONVERSE: &[TagRule] = &[OfUser(K::Conversations)];
    pub(crate) const WEB_CONVERSE: &[TagRule] = &[All(K::Conversations), All(K::WebConversations)];
    /// The end of a conversation: its files and feedbacks go with it.
    pub(crate) const FORGET: &[TagRule] = &[OfUser(K::Conversations), All(K::Feedbacks), All(K::Files)];
    pub(crate) const WEB_FORGET: &[TagRule] = &[
        All(K::Conversations),
        All(K::WebConversations),
        All(K::Feedbacks),
        All(K::Files),
    ];
    /// Feedback on a message.
    pub(crate) const RATE: &[TagRule] = &[OfUser(K::Conversations), All(K::Feedbacks)];
    pub(crate) const WEB_RATE: &[TagRule] =
        &[All(K::Conversations), All(K::WebConversations), All(K::Feedbacks)];
    pub(crate) const ANNOTATE: &[TagRule] = &[All(K::Annotations)];
    /// Whether an app answers from annotations is among its parameters.
    pub(crate) const ANNOTATION_REPLY: &[TagRule] = &[All(K::Annotations), All(K::AppMetadata)];
    /// Data sets that are not known one by one.
    pub(crate) const DATASETS: &[TagRule] = &[All(K::Datasets)];
    /// One data set, and the lists that it stands in.
    pub(crate) const DATASET: &[TagRule] = &[OfId(K::Datasets), Named(K::Datasets, "list")];
    /// All that may wait for a batch of documents of one data set.
    pub(crate) const BATCH: &[TagRule] = &[All(K::Datasets), OfId(K::Datasets), Named(K::Datasets, "list")];
}

/// Writes a table: per row the methods, the profile, the tags (`fills …`, `ends …`, or `begins …` where work in
/// the background goes on changing what the request ends; `tells …` of such work), whose the answers are where
/// it is not what the table's head says (`by …`), the template, and the ids that a successful answer has
/// (`learns …`).
macro_rules! rows {
    ($who:ident; $(
        $method:ident $(+ $more:ident)* $profile:ident
        $(fills $fills:ident)? $(ends $ends:ident)? $(begins $begins:ident)? $(tells $tells:ident)?
        $(by $by:ident)? $template:literal $(learns $learns:ident)?;
    )*) => {
        &[$($crate::classify::row::Row {
            template: $template,
            methods: $crate::classify::row::Methods::$method
                $(.and($crate::classify::row::Methods::$more))*,
            profile: $crate::classify::row::profile::$profile,
            who: [$($crate::classify::row::Who::$by,)? $crate::classify::row::Who::$who][0],
            fills: [$($crate::classify::row::fills::$fills,)? $crate::classify::row::fills::NONE][0],
            ends: [
                $($crate::classify::row::ends::$ends,)?
                $($crate::classify::row::ends::$begins,)?
                $crate::classify::row::ends::NONE,
            ][0],
            begins: [$($crate::classify::row::ends::$begins,)? $crate::classify::row::ends::NONE][0],
            tells: [$($crate::classify::row::ends::$tells,)? $crate::classify::row::ends::NONE][0],
            asks: $crate::classify::asks::Wants::of_template($template),
            learns: [$($crate::classify::learns::$learns,)? $crate::classify::learns::NONE][0],
        }),*]
    };
}
pub(crate) use rows;
