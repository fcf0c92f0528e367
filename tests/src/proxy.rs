//! A TCP proxy between a server and its Redis, on which the test pulls the plugs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::until;

/// A proxy; dropping it ends it and whatever goes through it.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    /// Nothing passes, and nobody is told.
    partitioned: bool,
    ended: bool,
    /// Cut the connection whose reply contains this, in the middle of it.
    cut_at: Option<Vec<u8>>,
    /// Both sockets of each connection.
    open: Vec<(TcpStream, TcpStream)>,
    accepted: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts a proxy of its own, on a free port, to this address.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                target,
                partitioned: false,
                ended: false,
                cut_at: None,
                open: Vec::new(),
                accepted: 0,
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming() {
                if theirs.state().ended {
                    return;
                }
                if let Ok(near) = near {
                    let shared = Arc::clone(&theirs);
                    // Not here: connecting may take its time, and waits for the end of a partition.
                    thread::spawn(move || connect(&shared, near));
                }
            }
        });
        Self { addr, shared }
    }

    /// Its address for `--redis`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Ends every connection that goes through it; new ones are welcome.
    pub fn cut(&self) {
        cut(&mut self.shared.state());
    }

    /// Lets nothing pass any more and tells nobody: bytes wait, connections are accepted and lead nowhere.
    pub fn partition(&self) {
        self.shared.state().partitioned = true;
    }

    /// Ends a partition: what waited passes, late, as in a network.
    pub fn heal(&self) {
        self.shared.state().partitioned = false;
        self.shared.changed.notify_all();
    }

    /// Leads to another server from now on; what led to the old one is cut.
    pub fn retarget(&self, target: SocketAddr) {
        let mut state = self.shared.state();
        state.target = target;
        cut(&mut state);
    }

    /// Cuts the next connection on which the server says `text`, in the middle of that text.
    pub fn cut_in_reply(&self, text: &str) {
        self.shared.state().cut_at = Some(text.as_bytes().to_vec());
    }

    /// Waits until the reply came that `cut_in_reply` waits for.
    #[track_caller]
    pub fn wait_for_cut(&self) {
        until("a reply is cut", || self.shared.state().cut_at.is_none());
    }

    /// How many connections it has seen.
    pub fn accepted(&self) -> u64 {
        self.shared.state().accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        cut(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        // Wakes who waits for a connection.
        drop(TcpStream::connect(self.addr));
    }
}

fn cut(state: &mut State) {
    for (near, far) in state.open.drain(..) {
        drop((near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both)));
    }
}

fn connect(shared: &Arc<Shared>, near: TcpStream) {
    let target = {
        let mut state = wait_while_partitioned(shared);
        state.accepted += 1;
        if state.ended {
            return;
        }
        state.target
    };
    // Where nobody listens, dropping the near end says so.
    let Ok(far) = TcpStream::connect_timeout(&target, Duration::from_secs(5)) else {
        return;
    };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a handle");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("an option");
    }
    let mut state = shared.state();
    if state.ended || state.target != target {
        return;
    }
    // Those that have ended need no place.
    state.open.retain(|(near, _)| near.peer_addr().is_ok());
    state.open.push((clone(&near), clone(&far)));
    drop(state);
    let (to_far, to_near) = (clone(&far), clone(&near));
    let back = Arc::clone(shared);
    thread::spawn(move || pump(&back, far, to_near, true));
    pump(shared, near, to_far, false);
}

fn wait_while_partitioned(shared: &Shared) -> MutexGuard<'_, State> {
    shared
        .changed
        .wait_while(shared.state(), |state| state.partitioned && !state.ended)
        .unwrap_or_else(PoisonError::into_inner)
}

/// Carries bytes one way, to the end of either side.
fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream, replies: bool) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut piece) {
        let mut state = wait_while_partitioned(shared);
        let mut wanted = &piece[..len];
        let mut stop = false;
        let found = state.cut_at.as_ref().filter(|_| replies).and_then(|text| {
            let at = wanted
                .windows(text.len())
                .position(|window| window == text)?;
            Some(at + text.len() / 2)
        });
        if let Some(end) = found {
            wanted = &wanted[..end];
            state.cut_at = None;
            stop = true;
        }
        drop(state);
        if to.write_all(wanted).is_err() || stop {
            break;
        }
    }
    // The end of one way waits for the end of a partition as its bytes do.
    drop(wait_while_partitioned(shared));
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
