//! Is a backend topic taken, and should it be?

use crate::backend::{self, Op};

/// A topic of the backend as this process holds it.
///
/// Joins and leaves race with operations in flight; which of them wins is decided here, by what is wanted when
/// an answer arrives. At most one operation is in flight, so the backend never sees an order that was not meant.
///
/// ```text
///   Idle ──want──▶ Subscribing ──ok──▶ Held ──unwanted──▶ Releasing ──▶ Idle
///                      └──error──▶ Idle          └──want──▶ (stays, then Subscribing)
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Topic {
    #[default]
    Idle,
    Subscribing,
    Held,
    Releasing,
}

/// What to ask of the backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TopicOp {
    Subscribe,
    Unsubscribe,
}

impl TopicOp {
    /// The operation, for this topic.
    pub(super) fn of(self, topic: backend::Topic) -> Op {
        let topics = vec![topic];
        match self {
            Self::Subscribe => Op::Subscribe { topics },
            Self::Unsubscribe => Op::Unsubscribe { topics },
        }
    }
}

impl Topic {
    pub(super) fn is_held(self) -> bool {
        self == Self::Held
    }

    /// Compares what is wanted with what is; the operation returned is in flight from here on.
    pub(super) fn settle(&mut self, wanted: bool) -> Option<TopicOp> {
        match (*self, wanted) {
            (Self::Idle, true) => {
                *self = Self::Subscribing;
                Some(TopicOp::Subscribe)
            }
            (Self::Held, false) => {
                *self = Self::Releasing;
                Some(TopicOp::Unsubscribe)
            }
            _ => None,
        }
    }

    /// The operation in flight ended. A failed subscription is none; a failed release may or may not hold, which
    /// the next subscription settles because taking a topic twice is harmless.
    pub(super) fn handle_backend(&mut self, ok: bool) {
        *self = match *self {
            Self::Subscribing if ok => Self::Held,
            Self::Subscribing | Self::Releasing | Self::Idle => Self::Idle,
            Self::Held => Self::Held,
        };
    }
}
