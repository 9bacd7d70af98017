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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: u64 = 1;
    const OTHER: u64 = 2;

    fn beat(from: u64, sequence: u64, sent: u64) -> Message {
        Message {
            from,
            sequence,
            sent_at: 0,
            news: News::Beat(sent),
        }
    }

    fn ended(from: u64, sequence: u64) -> Message {
        Message {
            from,
            sequence,
            sent_at: 0,
            news: News::Ended(vec![1]),
        }
    }

    /// Subscribed at 0 and heard since 600, to the beat that was sent then.
    fn hearing() -> Hearing {
        let mut hearing = Hearing::new(OWN);
        hearing.subscribed(0);
        assert_eq!(hearing.hear(&beat(OWN, 0, 600), 601), Effect::Regained(600));
        hearing
    }

    #[test]
    fn who_has_just_subscribed_hears_after_a_beat_of_his_own_that_went_out_later() {
        let mut hearing = Hearing::new(OWN);
        assert_eq!(hearing.hear(&beat(OWN, 0, 1), 1), Effect::News, "deaf");
        hearing.subscribed(100);
        assert_eq!(
            hearing.hear(&beat(OTHER, 7, 0), 150),
            Effect::None,
            "taken as it is"
        );
        assert_eq!(hearing.hear(&beat(OWN, 0, 200), 201), Effect::None, "too early");
        assert!(!hearing.hears(300));
        assert_eq!(hearing.hear(&beat(OWN, 0, 600), 601), Effect::Regained(600));
        assert!(
            hearing.hears(1599) && !hearing.hears(1600),
            "a second from when it was sent"
        );
        assert_eq!(hearing.hear(&beat(OWN, 0, 850), 851), Effect::Heard(850));
        assert!(hearing.hears(1849));
    }

    #[test]
    fn what_was_silent_for_a_second_begins_anew() {
        let mut hearing = hearing();
        assert_eq!(hearing.hear(&beat(OWN, 0, 1650), 1651), Effect::Regained(1650));
        assert_eq!(
            hearing.hear(&beat(OWN, 0, 1700), 2701),
            Effect::None,
            "it took longer than a second"
        );
        hearing.lost();
        assert!(!hearing.hears(1700));
    }

    #[test]
    fn lost_news_are_noticed_with_the_next_news_or_beat() {
        for next in [ended(OTHER, 3), beat(OTHER, 2, 0)] {
            let mut hearing = hearing();
            assert_eq!(hearing.hear(&ended(OTHER, 1), 700), Effect::News, "its first");
            assert_eq!(hearing.hear(&beat(OTHER, 1, 0), 710), Effect::None);
            assert_eq!(hearing.hear(&next, 720), Effect::Gap);
            let after = beat(OTHER, next.sequence, 0);
            assert_eq!(hearing.hear(&after, 730), Effect::None, "once");
        }
        let mut hearing = hearing();
        assert_eq!(hearing.hear(&ended(3, 2), 700), Effect::Gap, "its first was lost");
        assert_eq!(
            hearing.hear(&beat(4, 0, 0), 700),
            Effect::None,
            "it has said nothing yet"
        );
        assert_eq!(
            hearing.hear(&ended(3, 2), 700),
            Effect::Gap,
            "and nothing is said twice"
        );
    }

    #[test]
    fn the_list_of_instances_is_bounded() {
        let mut hearing = hearing();
        for number in 0..3 * PEERS as u64 {
            hearing.hear(&beat(100 + number, 0, 0), 700);
        }
        assert!(hearing.peers.len() <= PEERS);
    }

    proptest! {
        #[test]
        fn whoever_misses_news_learns_of_a_gap(lost in proptest::collection::vec(any::<bool>(), 1..30)) {
            let mut hearing = hearing();
            let mut missing = false;
            for (number, lost) in (1..).zip(&lost) {
                missing |= lost;
                if !lost {
                    let effect = hearing.hear(&ended(OTHER, number), 700);
                    prop_assert_eq!(effect == Effect::Gap, missing);
                    missing = false;
                }
            }
            let effect = hearing.hear(&beat(OTHER, lost.len() as u64, 0), 700);
            prop_assert_eq!(effect == Effect::Gap, missing);
        }
    }
}
