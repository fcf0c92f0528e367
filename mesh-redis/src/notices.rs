//! The notices that wait for the server, and until when messages are among them.

use std::{sync::Mutex, task::Waker};

use mesh_core::backend::{BoxStream, Mailbox, Notice};

use crate::lock;

/// A mailbox that lets in the messages of one epoch only, or of none while the store is lost.
#[derive(Default)]
pub(crate) struct Inbox {
    mailbox: Mailbox,
    epoch: Mutex<u64>,
}

impl Inbox {
    /// Puts in what a subscription told, unless its epoch is over.
    pub(crate) fn push_message(&self, epoch: u64, notice: Notice) {
        let waker = {
            let current = lock(&self.epoch);
            if *current != epoch {
                return;
            }
            self.mailbox.push(notice)
        };
        wake(waker);
    }

    /// Puts in what belongs to no epoch.
    pub(crate) fn push(&self, notice: Notice) {
        wake(self.mailbox.push(notice));
    }

    /// From here on messages of this epoch come in, or of none for 0; the notice stands before them. The waker is to be
    /// woken once no lock is held.
    pub(crate) fn turn(&self, epoch: u64, notice: Option<Notice>) -> Option<Waker> {
        let mut current = lock(&self.epoch);
        *current = epoch;
        self.mailbox.push(notice?)
    }

    /// What the server reads.
    pub(crate) fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        self.mailbox.notices()
    }

    /// Lets go of what waits and ends the stream.
    pub(crate) fn close(&self) {
        self.mailbox.close();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.mailbox.dropped()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use mesh_core::backend::Topic;

    use super::*;

    fn message(text: &'static str) -> Notice {
        Notice::Message {
            topic: Topic::All,
            message: text.into(),
        }
    }

    #[test]
    fn an_epoch_that_is_over_tells_nothing() {
        let inbox = Inbox::default();
        let mut notices = inbox.notices();
        inbox.turn(1, None);
        inbox.push_message(1, message("1"));
        inbox.turn(0, Some(Notice::Lost));
        inbox.push_message(1, message("late"));
        inbox.push_message(2, message("early"));
        let restored = Notice::Restored {
            data_kept: None,
            number: 2,
            kept: vec![],
        };
        inbox.turn(2, Some(restored.clone()));
        inbox.push_message(1, message("later"));
        inbox.push_message(2, message("2"));
        let batch = notices
            .as_mut()
            .poll_next(&mut Context::from_waker(Waker::noop()));
        let told = vec![message("1"), Notice::Lost, restored, message("2")];
        assert_eq!(batch, Poll::Ready(Some(told)));
    }
}
