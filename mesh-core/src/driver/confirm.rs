//! What another instance is asked to do for a connection of its own, and the word that it is done.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::{
    FutureExt as _,
    future::{Either, select},
};

use super::{ServerError, Task, server::Inner};
use crate::{
    backend::{BackendError, ConnectionId, InstanceId, Op, Reply, Topic},
    relay::Relay,
    sync::{Mutex, MutexGuard},
};

/// How long another instance may take to say that it is done. One that died is cleaned up later than that, and one that lost the backend
/// cannot say anything.
const CONFIRM_TIME_MAX: Duration = Duration::from_secs(5);

/// The requests of this instance that are not confirmed.
#[derive(Debug, Default)]
pub(super) struct Confirmations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Confirmations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> (Confirming<'_>, oneshot::Receiver<()>) {
        let (sender, confirmed) = oneshot::channel();
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.waiting.insert(number, sender);
        let all = self;
        (Confirming { all, number }, confirmed)
    }

    /// Another instance says that it is done.
    pub(super) fn confirm(&self, number: u64) {
        let waiting = self.state().waiting.remove(&number);
        if let Some(waiting) = waiting {
            // Whoever asked may have gone meanwhile.
            let _ = waiting.send(());
        }
    }
}

/// A request that is forgotten with whoever waits for it.
struct Confirming<'a> {
    all: &'a Confirmations,
    number: u64,
}

impl Drop for Confirming<'_> {
    fn drop(&mut self) {
        self.all.state().waiting.remove(&self.number);
    }
}

/// What is done about an instance that counts as dead, and may come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum IfAway {
    /// It finds a note then.
    LeaveNote,
    /// Nothing: it learns from the store what was done.
    TrustStore,
}

impl Inner {
    /// Another instance that may hold this connection.
    pub(super) fn elsewhere(&self, id: &ConnectionId) -> Option<InstanceId> {
        id.instance().filter(|owner| *owner != self.instance_id)
    }

    /// Has the instance of a connection do something, and waits until it is done. Nothing happens for a connection that does not exist.
    ///
    /// One that the store knows nothing of may live on all the same: on an instance that has yet to state it, or that was cut off for so long
    /// that it counts as dead.
    pub(super) async fn tell_owner(
        self: &Arc<Self>,
        id: &ConnectionId,
        relay: Relay,
        if_away: IfAway,
    ) -> Result<(), ServerError> {
        let Some(owner) = self.elsewhere(id) else {
            return Ok(());
        };
        let connection = id.clone();
        let Reply::Document(document) = self.ask(Op::ConnectionMetadata { connection }).await?
        else {
            return Ok(());
        };
        if document.revision == 0 {
            let op = Op::KeepFor {
                instance: owner.clone(),
                message: (if_away == IfAway::LeaveNote).then(|| relay.encode()),
            };
            if self.ask(op).await? == Reply::Flag(true) {
                return Ok(());
            }
        }
        self.tell(owner, relay).await
    }

    /// Does what others left a note of while this instance was away, before anything of it is stated again: whoever is to leave is out, and
    /// what takes longer goes on by itself.
    pub(super) fn do_what_was_kept(self: &Arc<Self>, kept: Vec<Bytes>) {
        for message in kept {
            let Some(relay) = Relay::decode(&message) else {
                self.count_dropped();
                continue;
            };
            let server = Arc::clone(self);
            let topic = Topic::Instance(self.instance_id.clone());
            let mut work: Task = Box::pin(async move { server.handle_relay(topic, relay).await });
            if (&mut work).now_or_never().is_none() {
                self.runtime.spawn(work);
            }
        }
    }

    /// Has another instance do something, and waits until it is done.
    pub(super) async fn tell(
        self: &Arc<Self>,
        instance: InstanceId,
        relay: Relay,
    ) -> Result<(), ServerError> {
        let (confirming, confirmed) = self.confirmations.begin();
        let relay = Relay::Request {
            number: confirming.number,
            from: self.instance_id.clone(),
            relay: Box::new(relay),
        };
        self.publish(Topic::Instance(instance), &relay).await?;
        let deadline = self.runtime.now() + CONFIRM_TIME_MAX;
        match select(confirmed, self.runtime.sleep_until(deadline)).await {
            Either::Left(_) => Ok(()),
            Either::Right(_) => {
                let silent = "the connection's instance does not answer".to_owned();
                Err(BackendError::Unavailable(silent).into())
            }
        }
    }

    /// Does what another instance asks for, and says so. The notices behind this one do not wait for it.
    pub(super) fn handle_request(self: &Arc<Self>, number: u64, from: InstanceId, relay: Relay) {
        let server = Arc::clone(self);
        self.runtime.spawn(Box::pin(async move {
            let topic = Topic::Instance(server.instance_id.clone());
            server.handle_relay(topic, relay).await;
            let done = Relay::Done { number };
            if let Err(error) = server.publish(Topic::Instance(from), &done).await {
                tracing::debug!(%error, "an instance was not told that its request is done");
            }
        }));
    }

    /// Publishes a message to other instances.
    pub(super) async fn publish(
        self: &Arc<Self>,
        topic: Topic,
        relay: &Relay,
    ) -> Result<(), ServerError> {
        let message = relay.encode();
        self.fits(message.len())?;
        self.ask(Op::Publish { topic, message }).await?;
        Ok(())
    }
}

#[cfg(test)]
mod models {
    use std::sync::{Arc, mpsc};

    use futures_util::FutureExt as _;
    use mesh_model::{block_on, check, thread, yield_now};

    use super::Confirmations;

    #[test]
    fn whoever_waits_is_told_and_whoever_gave_up_is_forgotten() {
        check(400, || {
            let all = Arc::new(Confirmations::default());
            let (tell, told) = mpsc::channel();
            let asks = {
                let all = Arc::clone(&all);
                thread(move || {
                    let (confirming, confirmed) = all.begin();
                    tell.send(confirming.number).unwrap();
                    assert_eq!(block_on(confirmed), Ok(()));
                })
            };
            let gives_up = {
                let all = Arc::clone(&all);
                thread(move || {
                    let (_confirming, confirmed) = all.begin();
                    assert_eq!(confirmed.now_or_never(), None);
                })
            };
            let number = loop {
                if let Ok(number) = told.try_recv() {
                    break number;
                }
                yield_now();
            };
            // The second time nobody is there any more, or all but.
            all.confirm(number);
            all.confirm(number);
            asks.join();
            gives_up.join();
            assert!(all.state().waiting.is_empty());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_nobody_waits_for_any_more_is_forgotten() {
        let confirmations = Confirmations::default();
        let (given_up, _) = confirmations.begin();
        let (confirming, mut confirmed) = confirmations.begin();
        assert_ne!(given_up.number, confirming.number);
        confirmations.confirm(given_up.number + 7);
        drop(given_up);
        assert_eq!(confirmations.state().waiting.len(), 1);
        assert_eq!(confirmed.try_recv(), Ok(None));
        confirmations.confirm(confirming.number);
        assert_eq!(confirmed.try_recv(), Ok(Some(())));
        assert!(confirmations.state().waiting.is_empty());
    }
}
