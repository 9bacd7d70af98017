//! Finds the row of a path: a tree over path segments, built once, walked without allocation.
//!
//! Only raw bytes count. A path that dify-api might read in another way than it is written (escapes, doubled
//! slashes, dot segments, parameters) is never looked up: see [`is_plain`].

use super::row::{Methods, Row};

/// What the tree knows of a path.
#[derive(Debug)]
pub(crate) enum Lookup<'p> {
    /// The row, and the path's first variable.
    Row(&'static Row, Option<&'p str>),
    /// A template that does not have the method.
    OtherMethod(&'static str),
    /// No template.
    Unknown,
}

/// One segment of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(&'static str),
    Uuid,
    /// `{x:uuid}.{y}`
    UuidDotText,
    Text,
    /// One segment or more.
    Path,
}

impl Piece {
    fn parse(segment: &'static str) -> Self {
        if !segment.starts_with('{') {
            Self::Literal(segment)
        } else if segment.contains("}.{") {
            Self::UuidDotText
        } else if segment.ends_with(":uuid}") {
            Self::Uuid
        } else if segment.ends_with(":path}") {
            Self::Path
        } else {
            Self::Text
        }
    }

    fn accepts(self, segment: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == segment,
            Self::Uuid => is_uuid(segment),
            Self::UuidDotText => {
                segment.len() > 37 && segment.as_bytes()[36] == b'.' && segment.get(..36).is_some_and(is_uuid)
            }
            Self::Text | Self::Path => !segment.is_empty(),
        }
    }
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by text.
    literals: Vec<(&'static str, usize)>,
    /// The narrower converter first, as werkzeug weighs them.
    variables: Vec<(Piece, usize)>,
    rows: Vec<&'static Row>,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Templates {
    nodes: Vec<Node>,
}

impl Templates {
    pub(crate) fn new(rows: impl Iterator<Item = &'static Row>) -> Self {
        let mut tree = Self {
            nodes: vec![Node::default()],
        };
        for row in rows {
            let mut at = 0;
            for segment in row.template.trim_start_matches('/').split('/') {
                at = tree.child(at, Piece::parse(segment));
            }
            tree.nodes[at].rows.push(row);
        }
        for node in &mut tree.nodes {
            node.literals.sort_unstable();
            node.variables.sort_unstable_by_key(|(piece, _)| match piece {
                Piece::UuidDotText => 0,
                Piece::Uuid => 1,
                Piece::Text => 2,
                Piece::Path | Piece::Literal(_) => 3,
            });
        }
        tree
    }

    fn child(&mut self, at: usize, piece: Piece) -> usize {
        let next = self.nodes.len();
        let node = &mut self.nodes[at];
        let known = match piece {
            Piece::Literal(text) => node
                .literals
                .iter()
                .find(|(known, _)| *known == text)
                .map(|c| c.1),
            _ => node
                .variables
                .iter()
                .find(|(known, _)| *known == piece)
                .map(|c| c.1),
        };
        if let Some(known) = known {
            return known;
        }
        match piece {
            Piece::Literal(text) => node.literals.push((text, next)),
            _ => node.variables.push((piece, next)),
        }
        self.nodes.push(Node::default());
        next
    }

    /// The row for `methods` at exactly `path`. Like werkzeug it goes on to a wider template when a narrower
    /// one does not have the method.
    pub(crate) fn find<'p>(&self, methods: Methods, path: &'p str) -> Lookup<'p> {
        let Some(rest) = path.strip_prefix('/').filter(|_| is_plain(path)) else {
            return Lookup::Unknown;
        };
        let mut walk = Walk::over(self, methods);
        match (walk.down(0, Some(rest), None), walk.near) {
            (Some((row, id)), _) => Lookup::Row(row, id),
            (None, Some(template)) => Lookup::OtherMethod(template),
            (None, None) => Lookup::Unknown,
        }
    }

    /// The template, of whatever methods, of a path if anything were a UUID.
    pub(crate) fn near(&self, path: &str) -> Option<&'static str> {
        let rest = path.strip_prefix('/').filter(|_| is_plain(path))?;
        let mut walk = Walk::over(self, Methods::GET);
        walk.loose = true;
        let found = walk.down(0, Some(rest), None);
        found.map(|(row, _)| row.template).or(walk.near)
    }
}

struct Walk<'t> {
    tree: &'t Templates,
    methods: Methods,
    near: Option<&'static str>,
    /// Whether anything may stand where a UUID should.
    loose: bool,
}

impl<'t> Walk<'t> {
    fn over(tree: &'t Templates, methods: Methods) -> Self {
        Self {
            tree,
            methods,
            near: None,
            loose: false,
        }
    }

    fn takes(&self, piece: Piece, segment: &str) -> bool {
        piece.accepts(segment) || self.loose && piece == Piece::Uuid && !segment.is_empty()
    }

    fn down<'p>(
        &mut self,
        at: usize,
        rest: Option<&'p str>,
        id: Option<&'p str>,
    ) -> Option<(&'static Row, Option<&'p str>)> {
        let tree = self.tree;
        let node = &tree.nodes[at];
        let Some(rest) = rest else {
            let found = node.rows.iter().find(|row| row.methods.meets(self.methods));
            self.near = self.near.or(node.rows.first().map(|row| row.template));
            return found.map(|row| (*row, id));
        };
        let (segment, tail) = match rest.split_once('/') {
            Some((segment, tail)) => (segment, Some(tail)),
            None => (rest, None),
        };
        if let Ok(index) = node.literals.binary_search_by(|(text, _)| (*text).cmp(segment))
            && let Some(found) = self.down(node.literals[index].1, tail, id)
        {
            return Some(found);
        }
        for &(piece, child) in &node.variables {
            let found = match piece {
                Piece::Path => self.down_path(child, rest, id),
                _ if self.takes(piece, segment) => self.down(child, tail, id.or(Some(segment))),
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Tries the shortest value of a `path` converter first. Templates have at most two of them, and what
    /// stands after one begins with a literal or is at most two segments long: the work is linear.
    fn down_path<'p>(
        &mut self,
        child: usize,
        rest: &'p str,
        id: Option<&'p str>,
    ) -> Option<(&'static Row, Option<&'p str>)> {
        if rest.is_empty() || rest.ends_with('/') {
            return None;
        }
        let node = &self.tree.nodes[child];
        if !(node.literals.is_empty() && node.variables.is_empty()) {
            for (end, _) in rest.match_indices('/') {
                let found = self.down(child, Some(&rest[end + 1..]), id.or(Some(&rest[..end])));
                if found.is_some() {
                    return found;
                }
            }
        }
        self.down(child, None, id.or(Some(rest)))
    }
}

/// Whether a path means what it says: printable ASCII without `%`, `;`, `\`, empty or dot segments. (An empty
/// last segment, a trailing slash, is left to the templates.)
pub(crate) fn is_plain(path: &str) -> bool {
    let mut segment = [0_u8; 2];
    let mut length = 1; // nothing but `/` may come first
    for byte in path.bytes() {
        match byte {
            b'/' => {
                let dots = length <= 2 && length > 0 && segment[..length].iter().all(|b| *b == b'.');
                if length == 0 || dots {
                    return false;
                }
                length = 0;
            }
            b'%' | b';' | b'\\' => return false,
            0x21..=0x7e => {
                if let Some(place) = segment.get_mut(length) {
                    *place = byte;
                }
                length += 1;
            }
            _ => return false,
        }
    }
    !(length > 0 && length <= 2 && segment[..length].iter().all(|b| *b == b'.'))
}

/// 8-4-4-4-12 hexadecimal digits in any case, as werkzeug's converter has it.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}
