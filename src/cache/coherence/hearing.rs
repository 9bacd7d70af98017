//! Whether everything is heard that others say: sequence numbers tell lost messages, an instance's own beats tell
//! silence. Pure; times are milliseconds of the caller's own clock.
//!
//! ```text
//!           subscribed              own beat, 500 ms later: everything kept is ended once
//!  Deaf ──────────────► Tuning ──────────────────────────────────────────► Hearing ◄─┐ own beat
//!   ▲  ▲                                                                     │   └────┘
//!   │  └──── lost ◄──────────────────────────────────────────────────────────┤
//!   └─────── 1 s without a beat of one's own (the next one begins anew) ◄────┘
//! ```
//!
//! A beat counts from when it was sent: what was put on the board before it has been heard when it comes back, so
//! an instance that hears knows every bump that is a second old.

use std::collections::HashMap;

use super::message::{Message, News};

/// Milliseconds between beats.
pub(super) const BEAT: u64 = 250;
/// Milliseconds without a beat of one's own after which one is deaf.
pub(super) const SILENCE: u64 = 1000;
/// Milliseconds for which others' sequence numbers are taken as they are, after a new subscription.
const TUNING: u64 = 2 * BEAT;
/// Instances whose sequence numbers are remembered, and for how long without hearing them.
const PEERS: usize = 1024;
const FORGET: u64 = 60_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Hearing {
    own: u64,
    state: State,
    peers: HashMap<u64, Peer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Deaf,
    Tuning { since: u64 },
    Hearing { until: u64 },
}

#[derive(Debug)]
struct Peer {
    sequence: u64,
    heard_at: u64,
}

/// What a message means for what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Only what it says.
    News,
    /// Something was lost: nothing that is kept can be trusted.
    Gap,
    /// This one proves that everything sent before this time (milliseconds) was heard; nothing new.
    Heard(u64),
    /// The same, after a time of deafness: nothing that is kept can be trusted, but what comes from now on can.
    Regained(u64),
    /// Nothing.
    None,
}

impl Hearing {
    pub(super) fn new(own: u64) -> Self {
        Self {
            own,
            state: State::Deaf,
            peers: HashMap::new(),
        }
    }

    /// A new subscription began.
    pub(super) fn subscribed(&mut self, now: u64) {
        self.state = State::Tuning { since: now };
        self.peers.clear();
    }

    /// The subscription ended.
    pub(super) fn lost(&mut self) {
        self.state = State::Deaf;
    }

    /// Whether everything is heard at `now`.
    pub(super) fn hears(&self, now: u64) -> bool {
        matches!(self.state, State::Hearing { until } if now < until)
    }

    /// Takes in one message.
    pub(super) fn hear(&mut self, message: &Message, now: u64) -> Effect {
        if self.state == State::Deaf {
            return Effect::News;
        }
        let is_beat = matches!(message.news, News::Beat(_));
        let known = self.peers.get(&message.from).map(|peer| peer.sequence);
        let expected = match known {
            Some(last) if is_beat => last,
            Some(last) => last.wrapping_add(1),
            // An instance that has just started has said nothing yet.
            None => u64::from(!is_beat),
        };
        if known.is_none() {
            self.make_room(now);
        }
        let peer = Peer {
            sequence: message.sequence,
            heard_at: now,
        };
        self.peers.insert(message.from, peer);
        let tuning = matches!(self.state, State::Tuning { .. });
        if message.sequence != expected && !(tuning && known.is_none()) {
            return Effect::Gap;
        }
        match message.news {
            News::Beat(sent) if message.from == self.own => self.own_beat(sent, now),
            News::Beat(_) => Effect::None,
            _ => Effect::News,
        }
    }

    fn own_beat(&mut self, sent: u64, now: u64) -> Effect {
        let until = sent.saturating_add(SILENCE);
        match self.state {
            State::Tuning { since } if sent < since.saturating_add(TUNING) || now >= until => Effect::None,
            State::Hearing { until: last } if now < last => {
                self.state = State::Hearing {
                    until: until.max(last),
                };
                Effect::Heard(sent)
            }
            State::Deaf => Effect::None,
            State::Hearing { .. } if now >= until => Effect::None,
            State::Tuning { .. } | State::Hearing { .. } => {
                self.state = State::Hearing { until };
                Effect::Regained(sent)
            }
        }
    }

    fn make_room(&mut self, now: u64) {
        if self.peers.len() >= PEERS {
            self.peers
                .retain(|_, peer| now.saturating_sub(peer.heard_at) < FORGET);
        }
        if self.peers.len() >= PEERS {
            // Who is forgotten comes back as a gap: that costs misses, no more.
            self.peers.clear();
        }
    }
}
