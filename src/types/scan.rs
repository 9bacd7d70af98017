//! Finds the texts behind certain names in JSON while it passes, wherever these are.
//!
//! Not a parser: nesting does not matter. Works on JSON and on events that carry JSON, in pieces of any size, and
//! remembers a few dozen bytes between them. The guard learns by it what exists, routing whose work has begun.

use memchr::memchr;

/// The longest name or value that is looked at.
pub const LONGEST: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The text that has begun, as far as it may matter.
    text: Vec<u8>,
    /// Whether the text has something in it that is not to be taken as it stands.
    spoilt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    /// In a text; with the place of its name.
    Text(Option<usize>),
    /// Behind a backslash in it.
    Escape(Option<usize>),
    /// Behind a text that is a name if a colon follows; with its place.
    Name(usize),
    /// Behind that colon.
    Colon(usize),
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Outside,
            text: Vec::with_capacity(LONGEST),
            spoilt: false,
        }
    }
}

impl Scanner {
    /// Goes on with `bytes`. `place` says which of the names that are looked for this is; `found` is told of every text
    /// behind one that ends in `bytes`: neither empty nor longer than [`LONGEST`] bytes, and without escapes.
    pub fn scan(
        &mut self,
        mut bytes: &[u8],
        place: impl Fn(&[u8]) -> Option<usize>,
        mut found: impl FnMut(usize, &[u8]),
    ) {
        loop {
            if self.state == State::Outside {
                let Some(at) = memchr(b'"', bytes) else { return };
                bytes = &bytes[at..];
            }
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            bytes = rest;
            self.state = match (self.state, *byte) {
                (State::Outside, _) => self.begin(None),
                (State::Text(of), b'\\') => State::Escape(of),
                (State::Text(None), b'"') => match place(&self.text).filter(|_| !self.spoilt) {
                    Some(place) => State::Name(place),
                    None => State::Outside,
                },
                (State::Text(Some(place)), b'"') => {
                    if !self.spoilt && !self.text.is_empty() {
                        found(place, &self.text);
                    }
                    State::Outside
                }
                (State::Text(of), byte) => {
                    self.keep(byte);
                    State::Text(of)
                }
                (State::Escape(of), _) => {
                    self.spoilt = true;
                    State::Text(of)
                }
                (state @ (State::Name(_) | State::Colon(_)), b' ' | b'\t' | b'\r' | b'\n') => state,
                (State::Name(place), b':') => State::Colon(place),
                (State::Colon(place), b'"') => self.begin(Some(place)),
                // What seemed to be a name was a value: this begins the next text.
                (State::Name(_), b'"') => self.begin(None),
                (State::Name(_) | State::Colon(_), _) => State::Outside,
            };
        }
    }

    /// How much it remembers, in bytes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn remembers(&self) -> usize {
        self.text.len()
    }

    fn begin(&mut self, of: Option<usize>) -> State {
        self.text.clear();
        self.spoilt = false;
        State::Text(of)
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < LONGEST {
            self.text.push(byte);
        } else {
            self.spoilt = true;
        }
    }
}
