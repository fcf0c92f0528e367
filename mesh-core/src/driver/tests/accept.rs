//! Who comes in at a listener, and who has to go for it.

use std::{
    future::{Future, poll_fn},
    io,
    sync::{Arc, Mutex},
    task::Poll,
    time::{Duration, Instant},
};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::{FutureExt, StreamExt};
use http::{Request, header};

use crate::driver::{
    FrontDoor, Leave, Leaving, MeshServer, Place,
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
        let sim = Sim::new();
        let server = sim
            .build(MeshServer::builder().limits(|limits| limits.handshakes_max = handshakes_max));
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
