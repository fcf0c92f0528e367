//! Carries out what the [`Link`] orders: one task for each backend.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_channel::{mpsc, oneshot};
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, BoxFuture, abortable},
    stream::FuturesUnordered,
};
use mesh_core::backend::Notice;

use crate::{
    ConnectError,
    connection::{Session, SharedSession},
    instances::{self, Beat},
    link::{Link, LinkAction},
    runtime,
    shared::Shared,
    stats::Counters,
    subscriptions::Order,
};

/// How far a message of one node of a cluster may be behind that of another.
const OVERTAKING_TIME_MAX: Duration = Duration::from_millis(250);

/// What the driver hears of.
pub(crate) enum Event {
    /// The instance closes.
    Close,
    Connected {
        epoch: u64,
        result: Result<SharedSession, ConnectError>,
    },
    /// A session failed.
    Failed {
        epoch: u64,
        reason: String,
    },
    Heartbeat {
        epoch: u64,
        beat: Beat,
    },
    /// A notice that may have overtaken messages.
    Late {
        epoch: u64,
        notice: Notice,
    },
    /// The orders are carried out, or cannot be.
    Ordered,
    Orders(Vec<Order>),
    Pong {
        epoch: u64,
        round_trip: Duration,
    },
    /// Nothing that the link wants to know.
    Quiet,
    Registered {
        epoch: u64,
        result: Result<Option<bool>, ConnectError>,
    },
    Resubscribed {
        epoch: u64,
        result: Result<Vec<String>, String>,
    },
    /// To be done beside everything else.
    Work(BoxFuture<'static, ()>),
}

type Work = FuturesUnordered<BoxFuture<'static, Event>>;

/// An attempt to open a session.
struct Connecting {
    epoch: u64,
    abort: AbortHandle,
    /// One of its connections failed before all were open.
    failed: Option<String>,
}

/// The task's own state.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    link: Link,
    work: Work,
    /// Orders are being carried out; the next ones wait.
    ordering: bool,
    /// What is being opened.
    connecting: Option<Connecting>,
    /// The session that is not up yet.
    session: Option<SharedSession>,
    /// The topics that were taken again.
    resubscribed: Vec<String>,
    /// Told when the first attempt is over; `None` afterwards.
    first: Option<oneshot::Sender<Result<(), ConnectError>>>,
    lost_at: Option<Instant>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        link: Link,
        first: oneshot::Sender<Result<(), ConnectError>>,
    ) -> Self {
        Self {
            shared,
            link,
            work: FuturesUnordered::new(),
            ordering: false,
            connecting: None,
            session: None,
            resubscribed: Vec::new(),
            first: Some(first),
            lost_at: None,
        }
    }

    /// Runs until the backend is dropped or closed.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut orders: mpsc::UnboundedReceiver<Order>,
        dropped: oneshot::Receiver<()>,
    ) {
        let mut dropped = dropped.fuse();
        loop {
            while let Some(action) = self.link.poll_action() {
                self.carry_out(action);
            }
            let event = {
                let wait = self.link.poll_timeout();
                let mut sleep = pin!(
                    async move {
                        match wait {
                            Some(at) => {
                                runtime::sleep(at.saturating_duration_since(Instant::now())).await;
                            }
                            None => std::future::pending().await,
                        }
                    }
                    .fuse()
                );
                let ordering = self.ordering;
                let mut order = pin!(
                    async {
                        if ordering {
                            return std::future::pending().await;
                        }
                        orders.next().await
                    }
                    .fuse()
                );
                futures_util::select_biased! {
                    _ = dropped => break,
                    event = events.select_next_some() => event,
                    event = self.work.select_next_some() => event,
                    order = order => match order {
                        Some(order) => Event::Orders(vec![order]),
                        None => break,
                    },
                    () = sleep => Event::Quiet,
                }
            };
            let event = match event {
                Event::Close => break,
                Event::Orders(mut waiting) => {
                    while let Ok(order) = orders.try_recv() {
                        waiting.push(order);
                    }
                    Event::Orders(waiting)
                }
                event => event,
            };
            self.handle(event);
        }
        // Whoever waits is told, and the connections go.
        self.link.handle_close();
        self.abandon();
        self.shared
            .set_session(Err("the backend is closed".to_owned()), None);
        self.shared.inbox.close();
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Close | Event::Quiet => {}
            Event::Connected { epoch, result } => {
                // One that was given up drops with its session, and leaves that of its successor alone.
                if self.link.awaits_connections(epoch) {
                    let result = self.connected(result);
                    self.link.handle_connected(epoch, result, now);
                }
            }
            Event::Failed { epoch, reason } => match &mut self.connecting {
                // Its end says more.
                Some(connecting) if connecting.epoch == epoch => connecting.failed = Some(reason),
                _ => self.link.handle_failure(epoch, &reason, now),
            },
            Event::Heartbeat { epoch, beat } => match beat {
                Beat::Alive { next, claimed } => {
                    self.link.handle_heartbeat(epoch, next, now);
                    self.reap(claimed);
                }
                Beat::Dead => {
                    let reason = "the store held this instance for dead";
                    self.link.handle_failure(epoch, reason, now);
                }
                // Refused or lost: without this one there is no next, and the lease ends.
                Beat::Failed(reason) => self.link.handle_failure(epoch, &reason, now),
            },
            Event::Late { epoch, notice } => {
                let shared = Arc::clone(&self.shared);
                self.work.push(Box::pin(async move {
                    runtime::sleep(OVERTAKING_TIME_MAX).await;
                    shared.inbox.push_message(epoch, notice);
                    Event::Quiet
                }));
            }
            Event::Ordered => self.ordering = false,
            Event::Work(work) => self.work.push(Box::pin(work.map(|()| Event::Quiet))),
            Event::Orders(orders) => self.order(orders),
            Event::Pong { epoch, round_trip } => {
                let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
                self.shared
                    .counters
                    .round_trip_micros
                    .store(micros, Ordering::Relaxed);
                self.link.handle_pong(epoch, now);
                self.shared.topics.expire_echoes(now);
            }
            Event::Registered { epoch, result } => {
                let result = self.judge(result);
                self.link.handle_registered(epoch, result, now);
            }
            Event::Resubscribed { epoch, result } => {
                if self.link.awaits_topics(epoch) {
                    let result = result.map(|names| self.resubscribed = names);
                    self.link.handle_resubscribed(epoch, result, now);
                }
            }
        }
        self.link.handle_timeout(now);
    }

    /// The current attempt is over.
    fn connected(&mut self, result: Result<SharedSession, ConnectError>) -> Result<(), String> {
        let failed = self.connecting.take().and_then(|it| it.failed);
        let result = result.and_then(|session| match failed {
            None => Ok(session),
            Some(reason) => Err(self.unreachable(reason)),
        });
        let result = result.map(|session| self.session = Some(session));
        self.judge(result)
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        let address = self.shared.config.address();
        ConnectError::Unreachable { address, reason }
    }

    /// Tells the first attempt's failure to who waits for it, unless it is to be tried again.
    fn judge<T>(&mut self, result: Result<T, ConnectError>) -> Result<T, String> {
        result.map_err(|error| {
            let reason = error.to_string();
            if !(self.shared.config.wait && error.is_passing())
                && let Some(first) = self.first.take()
            {
                let _ = first.send(Err(error));
            } else {
                tracing::debug!(%reason, "no way to Redis yet");
            }
            reason
        })
    }

    fn carry_out(&mut self, action: LinkAction) {
        let shared = Arc::clone(&self.shared);
        match action {
            LinkAction::Abandon { reason } => {
                self.abandon();
                // Unless it was told before.
                let _ = self.judge(Err::<(), _>(self.unreachable(reason)));
            }
            LinkAction::Connect { epoch } => {
                let open = async move {
                    let weak = Arc::downgrade(&shared);
                    let push = move |info| {
                        if let Some(shared) = weak.upgrade() {
                            shared.handle_push(epoch, info);
                        }
                    };
                    Session::open(&shared.config, epoch, push)
                        .await
                        .map(Arc::new)
                };
                let (open, abort) = abortable(open);
                self.connecting = Some(Connecting {
                    epoch,
                    abort,
                    failed: None,
                });
                self.work.push(Box::pin(async move {
                    match open.await {
                        Ok(result) => Event::Connected { epoch, result },
                        Err(_) => Event::Quiet,
                    }
                }));
            }
            LinkAction::Heartbeat { epoch, may_reap } => self.work.push(Box::pin(async move {
                let beat = instances::heartbeat(&shared, may_reap).await;
                Event::Heartbeat { epoch, beat }
            })),
            LinkAction::Lost { reason } => {
                shared.topics.lose();
                shared.set_session(Err(reason.clone()), Some(Notice::Lost));
                self.lost_at = Some(Instant::now());
                tracing::warn!(%reason, "the way to Redis is lost");
            }
            LinkAction::Ping { epoch } => self.work.push(Box::pin(async move {
                let sent = Instant::now();
                let Ok(session) = shared.session() else {
                    return Event::Quiet;
                };
                match session.ping().await {
                    Ok(()) => Event::Pong {
                        epoch,
                        round_trip: sent.elapsed(),
                    },
                    Err(failure) => {
                        shared.failed(&session, failure);
                        Event::Quiet
                    }
                }
            })),
            LinkAction::Register { epoch } => {
                let Some(session) = self.session.clone() else {
                    return;
                };
                self.work.push(Box::pin(async move {
                    let result = instances::register(&shared, &session).await;
                    Event::Registered { epoch, result }
                }));
            }
            LinkAction::Resubscribe { epoch } => {
                let Some(session) = self.session.clone() else {
                    return;
                };
                self.work.push(Box::pin(async move {
                    let names = shared.topics.names();
                    let result = match session.subscribe(&names).await {
                        Ok(refused) => match refused.into_iter().next() {
                            Some((name, reason)) => Err(format!("{name:?} is refused: {reason}")),
                            None => Ok(names),
                        },
                        Err(failure) => Err(format!("{failure:?}")),
                    };
                    Event::Resubscribed { epoch, result }
                }));
            }
            LinkAction::Up {
                data_kept, again, ..
            } => self.up(data_kept, again),
        }
    }

    fn up(&mut self, data_kept: Option<bool>, again: bool) {
        let shared = &self.shared;
        let Some(session) = self.session.take() else {
            return;
        };
        let resubscribed = std::mem::take(&mut self.resubscribed);
        if session.incarnation.get().is_some() {
            crate::lock(&shared.identity).served = true;
        }
        let number = session.epoch;
        let kept = shared.take_kept(&session);
        let notice = again.then_some(Notice::Restored {
            data_kept,
            number,
            kept,
        });
        shared.set_session(Ok(session), notice);
        if again {
            Counters::add(&shared.counters.reconnects, 1);
            Counters::add(&shared.counters.resubscriptions, resubscribed.len() as u64);
        }
        // Given back while they were being taken again.
        let names = shared.topics.unwanted(resubscribed);
        if !names.is_empty() {
            drop(shared.order(names, shared.topics.losses()));
        }
        if let Some(lost_at) = self.lost_at.take() {
            let outage = lost_at.elapsed();
            tracing::info!(?outage, ?data_kept, "the way to Redis is open again");
        }
        if let Some(first) = self.first.take() {
            let _ = first.send(Ok(()));
        }
    }

    fn abandon(&mut self) {
        if let Some(connecting) = self.connecting.take() {
            connecting.abort.abort();
        }
        if let Some(session) = self.session.take() {
            session.end();
        }
    }

    fn order(&mut self, orders: Vec<Order>) {
        let shared = Arc::clone(&self.shared);
        let Ok(session) = shared.session() else {
            // Their senders drop, which fails them.
            return;
        };
        self.ordering = true;
        self.work.push(Box::pin(async move {
            let names = orders.iter().flat_map(|order| &order.names);
            let changes = shared.topics.changes(names);
            let subscribe: Vec<_> = changes
                .subscribe
                .iter()
                .map(|(name, _)| name.clone())
                .collect();
            // Both to their ends: what is given up half way is not known to be done or not.
            let both = futures_util::future::join(
                session.subscribe(&subscribe),
                session.unsubscribe(&changes.unsubscribe),
            );
            let (subscribed, unsubscribed) = both.await;
            match unsubscribed.and(subscribed) {
                Ok(refused) => shared.ordered(&session, orders, changes.subscribe, refused),
                Err(failure) => {
                    shared.failed(&session, failure);
                }
            }
            Event::Ordered
        }));
    }

    /// Cleans up behind dead instances.
    fn reap(&mut self, claimed: Vec<String>) {
        for member in claimed {
            let shared = Arc::clone(&self.shared);
            self.work.push(Box::pin(async move {
                instances::reap(&shared, &member).await;
                Event::Quiet
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_attempt_tells_once_it_is_given_up_is_passed_over() {
        let (events, _events) = mpsc::unbounded();
        let (orders, _orders) = mpsc::unbounded();
        let config = crate::builder("redis://127.0.0.1:1").wait(true);
        let shared = Shared::new(config.check().unwrap(), [0; 8], events, orders);
        let now = Instant::now();
        let link = Link::new(crate::backend::link_config(&shared.config), 1, now);
        let mut driver = Driver::new(Arc::new(shared), link, oneshot::channel().0);
        let connect = driver.link.poll_action().unwrap();
        driver.carry_out(connect);
        let aborted = driver.connecting.as_ref().unwrap().abort.clone();
        while !driver.link.awaits_connections(2) {
            let at = driver.link.poll_timeout().unwrap();
            driver.link.handle_timeout(at);
            while let Some(action) = driver.link.poll_action() {
                driver.carry_out(action);
            }
        }
        assert!(aborted.is_aborted());
        driver.handle(Event::Failed {
            epoch: 1,
            reason: "late".to_owned(),
        });
        driver.handle(Event::Connected {
            epoch: 1,
            result: Err(ConnectError::Authentication("late".to_owned())),
        });
        driver.handle(Event::Resubscribed {
            epoch: 1,
            result: Ok(vec!["late".to_owned()]),
        });
        assert!(driver.link.awaits_connections(2));
        assert_eq!(driver.connecting.as_ref().unwrap().epoch, 2);
        assert!(driver.resubscribed.is_empty());
        assert!(driver.first.is_some(), "nobody is told");
        // A connection that breaks while others are being opened is the attempt's failure.
        driver.handle(Event::Failed {
            epoch: 2,
            reason: "broken".to_owned(),
        });
        assert!(driver.link.awaits_connections(2));
        assert_eq!(
            driver.connecting.as_ref().unwrap().failed.as_deref(),
            Some("broken")
        );
    }
}
