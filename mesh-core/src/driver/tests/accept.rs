//! Who comes in at a listener, and who has to go for it.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use http::{Request, header};
use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

use super::front_door::upgrade;
use crate::driver::{
    Accept, FrontDoor, Leave, Leaving, MeshServer, MeshServerBuilder, Place, UpgradeRequest,
    testkit::{Sim, Started},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const EMFILE: i32 = 24;

/// A connection that was handed to `serve`.
struct Served {
    number: u32,
    at: Instant,
    place: Place,
    leave: Leave,
}

/// A listener at which numbers arrive.
struct Listener {
    sim: Sim,
    server: MeshServer,
    arrivals: UnboundedSender<io::Result<u32>>,
    served: Arc<Mutex<Vec<Served>>>,
    serving: Started<()>,
}

fn accept(
    arrivals: &Arc<Mutex<UnboundedReceiver<io::Result<u32>>>>,
) -> impl Future<Output = io::Result<u32>> + Send + use<> {
    let arrivals = Arc::clone(arrivals);
    poll_fn(
        move |cx| match arrivals.lock().unwrap().poll_next_unpin(cx) {
            Poll::Ready(Some(arrival)) => Poll::Ready(arrival),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        },
    )
}

impl Listener {
    fn new(handshakes_max: usize) -> Self {
        Self::with(handshakes_max, |builder| builder)
    }

    fn with(
        handshakes_max: usize,
        change: impl FnOnce(MeshServerBuilder) -> MeshServerBuilder,
    ) -> Self {
        let sim = Sim::new();
        let builder = MeshServer::builder().limits(|limits| limits.handshakes_max = handshakes_max);
        let server = sim.build(change(builder));
        let (sender, receiver) = unbounded();
        let served = Arc::new(Mutex::new(Vec::new()));
        let serving = sim.start({
            let (server, sim) = (server.clone(), sim.clone());
            let (served, receiver) = (Arc::clone(&served), Arc::new(Mutex::new(receiver)));
            async move {
                let serve = |number, place, leave| {
                    let at = sim.now();
                    served.lock().unwrap().push(Served {
                        number,
                        at,
                        place,
                        leave,
                    });
                };
                server.accept_all(|| accept(&receiver), serve).await;
            }
        });
        Self {
            sim,
            server,
            arrivals: sender,
            served,
            serving,
        }
    }

    fn arrive(&self, arrival: io::Result<u32>) {
        self.arrivals.unbounded_send(arrival).unwrap();
        self.sim.run();
    }

    /// Whoever has been handed to `serve` asks for an upgrade, as long as it has not to leave. Resolves to its number, and whether it is
    /// let in.
    fn open_all(&self) -> Vec<Started<(u32, bool)>> {
        let served = std::mem::take(&mut *self.served.lock().unwrap());
        let opening = served.into_iter().map(|served| {
            self.sim.start(async move {
                let asking = pin!(served.place.handle_request(upgrade(&[]), None));
                let is_in = match select(asking, served.leave).await {
                    Either::Left((answer, _)) => matches!(answer, FrontDoor::Upgrade { .. }),
                    Either::Right(_) => false,
                };
                (served.number, is_in)
            })
        });
        opening.collect()
    }

    fn numbers(&self) -> Vec<u32> {
        let served = self.served.lock().unwrap();
        served.iter().map(|served| served.number).collect()
    }

    /// Who has been told to leave, and how.
    fn leaving(&self) -> Vec<(u32, Leaving)> {
        let mut served = self.served.lock().unwrap();
        let told = served
            .iter_mut()
            .map(|served| (served.number, (&mut served.leave).now_or_never()));
        told.filter_map(|(number, leaving)| Some((number, leaving?)))
            .collect()
    }

    /// What the connection at this place is answered, and whether it may ask again.
    fn ask(&self, index: usize) -> bool {
        let served = self.served.lock().unwrap();
        let head = Request::get("/").header("host", "mesh").body(()).unwrap();
        let asking = served[index]
            .place
            .handle_request(head.into_parts().0, None);
        match asking.now_or_never() {
            Some(FrontDoor::Respond(response)) => {
                !response.headers().contains_key(header::CONNECTION)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_newcomer_takes_the_place_of_the_quietest_or_waits() {
    let listener = Listener::new(2);
    for number in 0..4 {
        listener.arrive(Ok(number));
    }
    assert_eq!(listener.numbers(), [0, 1], "the others wait");
    listener.sim.advance(SECOND / 2);
    listener.ask(0);
    listener.sim.advance(SECOND / 2 - MS);
    assert_eq!(listener.leaving(), []);
    listener.sim.advance(MS);
    assert_eq!(listener.numbers(), [0, 1, 2]);
    assert_eq!(listener.leaving(), [(1, Leaving::AtOnce)]);
    listener.sim.advance(SECOND / 2);
    assert_eq!(listener.numbers(), [0, 1, 2, 3]);
    listener.served.lock().unwrap().remove(1);
    assert_eq!(listener.leaving(), [(0, Leaving::AtOnce)]);
}

#[test]
fn who_leaves_lets_the_newcomer_in_at_once() {
    let listener = Listener::new(1);
    for number in 0..3 {
        listener.arrive(Ok(number));
    }
    for number in 0..3 {
        assert_eq!(listener.numbers(), [number]);
        assert_eq!(listener.leaving(), []);
        let served = listener.served.lock().unwrap().pop();
        drop(served);
        listener.sim.run();
    }
    assert_eq!(listener.numbers(), [0_u32; 0]);
}

/// An `authenticate` that takes `time` to say yes.
fn slow(time: Duration) -> impl FnOnce(MeshServerBuilder) -> MeshServerBuilder {
    move |builder| {
        builder.authenticate(move |request: UpgradeRequest| async move {
            let runtime = &request.server.inner.runtime;
            runtime.sleep_until(runtime.now() + time).await;
            Ok(Accept::new())
        })
    }
}

#[test]
fn a_slow_authenticate_lets_a_storm_in_by_and_by() {
    let listener = Listener::with(4, slow(1_200 * MS));
    for number in 0..16 {
        listener.arrive(Ok(number));
    }
    let mut under_way = Vec::new();
    let mut inside = Vec::new();
    for _ in 0..100 {
        under_way.extend(listener.open_all());
        listener.sim.advance(50 * MS);
        under_way.retain(|opening| match opening.take() {
            None => true,
            Some((number, true)) => {
                inside.push(number);
                false
            }
            // A client tries again.
            Some((number, false)) => {
                listener.arrive(Ok(number));
                false
            }
        });
    }
    assert_eq!(inside, Vec::from_iter(0..16), "four at a time");
}

#[test]
fn who_is_being_decided_about_keeps_its_place_and_then_has_its_time() {
    let listener = Listener::with(2, slow(3 * SECOND));
    listener.arrive(Ok(0));
    let first = listener.open_all().remove(0);
    listener.arrive(Ok(1));
    listener.arrive(Ok(2));
    listener.sim.advance(SECOND);
    assert_eq!(listener.numbers(), [1, 2], "only the quiet one gives way");
    assert_eq!(listener.leaving(), [(1, Leaving::AtOnce)]);
    // Not even for want of file descriptors.
    listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
    listener.served.lock().unwrap().remove(0);
    let second = listener.open_all().remove(0);
    listener.arrive(Ok(3));
    listener.sim.advance(2 * SECOND - MS);
    assert!(!first.is_done() && !second.is_done());
    assert_eq!(listener.numbers(), [0_u32; 0], "the newcomer waits");
    listener.sim.advance(MS);
    assert_eq!(first.take(), Some((0, true)));
    assert_eq!(listener.numbers(), [3]);
    listener.sim.advance(SECOND);
    assert_eq!(second.take(), Some((2, true)));
}

#[test]
fn who_has_its_answer_is_quiet_again() {
    let listener = Listener::with(1, |builder| {
        builder.http(async |request: UpgradeRequest| {
            let runtime = &request.server.inner.runtime;
            runtime.sleep_until(runtime.now() + 1_500 * MS).await;
            None
        })
    });
    listener.arrive(Ok(0));
    let served = listener.served.lock().unwrap().pop().unwrap();
    let asked = listener.sim.start(async move {
        let head = Request::get("/").body(()).unwrap().into_parts().0;
        served.place.handle_request(head, None).await;
        // It stays for another request, and says nothing.
        let leaving = served.leave.await;
        drop(served.place);
        leaving
    });
    listener.arrive(Ok(1));
    listener.sim.advance(2_500 * MS - MS);
    assert!(!asked.is_done());
    listener.sim.advance(MS);
    assert_eq!(asked.take(), Some(Leaving::AtOnce));
    assert_eq!(listener.numbers(), [1]);
}

#[test]
fn where_places_are_few_nobody_stays_for_another_request() {
    let listener = Listener::new(2);
    listener.arrive(Ok(0));
    assert!(listener.ask(0));
    listener.arrive(Ok(1));
    assert!(!listener.ask(0));
    let served = listener.served.lock().unwrap().pop();
    drop(served);
    assert!(listener.ask(0));
    // Nor where the process has room for no more.
    listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
    assert!(!listener.ask(0));
}

#[test]
fn accepting_goes_on_after_any_error_without_spinning() {
    let listener = Listener::new(2);
    let start = listener.sim.now();
    for _ in 0..20 {
        listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
    }
    listener.arrive(Err(io::ErrorKind::ConnectionAborted.into()));
    listener.arrive(Ok(21));
    listener.arrive(Ok(22));
    listener.sim.advance(3_600 * SECOND);
    assert_eq!(listener.numbers(), [21, 22]);
    // 10 + 20 + … + 640 ms, then a second each: it neither spins nor gives up.
    let waited = (listener.served.lock().unwrap()[0].at - start).as_secs();
    assert!((13..=15).contains(&waited), "{waited}");
}

#[test]
fn where_the_process_has_room_for_no_more_the_quietest_goes() {
    let listener = Listener::new(10);
    listener.arrive(Ok(0));
    listener.arrive(Ok(1));
    listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
    assert_eq!(listener.leaving(), []);
    listener.sim.advance(SECOND);
    listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
    listener.arrive(Ok(2));
    assert_eq!(listener.leaving(), [(0, Leaving::AtOnce)]);
    // That helped, so it is not waited for long.
    listener.sim.advance(10 * MS);
    assert_eq!(listener.numbers(), [0, 1, 2]);
}

#[cfg(target_os = "linux")]
#[test]
fn every_want_of_room_makes_the_quietest_go() {
    let [enomem, enfile, enobufs] = [12, 23, 105].map(io::Error::from_raw_os_error);
    for error in [enomem, enfile, enobufs, io::ErrorKind::OutOfMemory.into()] {
        let listener = Listener::new(10);
        listener.arrive(Ok(0));
        listener.sim.advance(SECOND);
        let text = error.to_string();
        listener.arrive(Err(error));
        assert_eq!(listener.leaving(), [(0, Leaving::AtOnce)], "{text}");
    }
}

#[test]
fn an_error_that_is_no_want_of_room_costs_nobody_its_place() {
    const EPERM: i32 = 1;
    let listener = Listener::new(10);
    listener.arrive(Ok(0));
    listener.sim.advance(2 * SECOND);
    let errors = [
        io::Error::from_raw_os_error(EPERM),
        io::ErrorKind::PermissionDenied.into(),
        io::Error::other("a proxy's header is missing"),
    ];
    for error in errors {
        listener.arrive(Err(error));
    }
    listener.arrive(Ok(1));
    assert_eq!(listener.numbers(), [0], "after a pause");
    listener.sim.advance(70 * MS);
    assert_eq!(listener.numbers(), [0, 1]);
    assert_eq!(listener.leaving(), []);
    assert!(listener.ask(0), "places are not few");
}

/// Counts the warnings of its thread.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Warnings {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if *event.metadata().level() == Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn who_is_sent_away_and_what_fails_is_counted_and_told_once() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let listener = Listener::new(2);
    let counted = || {
        let metrics = listener.server.metrics();
        (
            metrics.handshakes_evicted_total,
            metrics.accept_errors_total,
        )
    };
    let fail = || {
        listener.arrive(Err(io::Error::from_raw_os_error(EMFILE)));
        listener.sim.advance(10 * SECOND);
    };
    for number in 0..5 {
        listener.arrive(Ok(number));
        listener.sim.advance(SECOND);
    }
    assert_eq!(counted(), (3, 0));
    assert_eq!(warnings.take(), 1);
    for _ in 0..20 {
        fail();
    }
    assert_eq!(counted(), (5, 20), "two were left");
    assert_eq!(warnings.take(), 1);
    listener.arrive(Err(io::ErrorKind::ConnectionAborted.into()));
    assert_eq!(counted(), (5, 20));
    listener.sim.advance(60 * SECOND);
    fail();
    assert_eq!(warnings.take(), 1, "another episode");
}

#[test]
fn a_listener_ends_with_the_server_and_everybody_goes() {
    let listener = Listener::new(2);
    for number in 0..3 {
        listener.arrive(Ok(number));
    }
    let server = listener.server.clone();
    let stopped = listener.sim.start(async move { server.shutdown().await });
    listener.sim.run();
    assert!(listener.serving.is_done() && stopped.is_done());
    let after_exchange = [0, 1].map(|number| (number, Leaving::AfterExchange));
    assert_eq!(listener.leaving(), after_exchange);
    assert_eq!(
        listener.numbers(),
        [0, 1],
        "who waited is not served any more"
    );
}
