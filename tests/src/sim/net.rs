//! Where the processes of a simulated world find each other.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{poll_fn, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_channel::mpsc;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use mesh_client_core::driver::{ConnectError, ConnectRequest, Connector, Target};
use mesh_core::driver::{MeshServer, Socket};

use super::{Cable, Clock, Conditions, Node, Pipe, cable};

type Accepted = (Pipe, SocketAddr);

/// The cables of a world, and who listens. Clones are handles.
#[derive(Clone)]
pub struct Network {
    clock: Clock,
    conditions: Conditions,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, mpsc::UnboundedSender<Accepted>>,
    /// With whom each is connected, by the order in which they were laid.
    cables: Vec<(String, Cable)>,
    /// How many hold up what is on its way to and from each.
    stalls: BTreeMap<String, u32>,
    ports: u16,
}

impl Network {
    /// A network without anybody on it.
    pub fn new(clock: &Clock, conditions: Conditions) -> Self {
        Self {
            clock: clock.clone(),
            conditions,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a server serve under a host's name, as an adapter's listener does, in a task of its process.
    ///
    /// Another one under the same name takes its place.
    pub fn listen(&self, host: &str, node: Node, server: &MeshServer) {
        let (sender, receiver) = mpsc::unbounded();
        self.state().listeners.insert(host.to_owned(), sender);
        let receiver = Arc::new(Mutex::new(receiver));
        let server = server.clone();
        self.clock.spawn(node, async move {
            let accept = || accept(Arc::clone(&receiver));
            server.serve_http1(accept, |pipe| ready(Ok(pipe))).await;
            drop(receiver);
            // As the adapters do: whoever serves until the end waits for it.
            let _ = server.shutdown().await;
        });
    }

    /// Connects clients over this network, to hosts of whatever port.
    pub fn connector(&self) -> Arc<dyn Connector> {
        Arc::new(self.clone())
    }

    /// The cables to a host that are in use.
    pub fn cables(&self, host: &str) -> Vec<Cable> {
        let mut state = self.state();
        state.cables.retain(|(_, cable)| cable.is_in_use());
        let theirs = state.cables.iter().filter(|(to, _)| to == host);
        theirs.map(|(_, cable)| cable.clone()).collect()
    }

    /// Nothing arrives at a host, or comes from it, and nobody is told, over cables that are there and those that are laid from now on; until it
    /// [goes on](Self::go_on).
    pub fn stall(&self, host: &str) {
        *self.state().stalls.entry(host.to_owned()).or_default() += 1;
        self.cables(host).iter().for_each(Cable::stall);
    }

    /// What was held up arrives, unless somebody else holds it up still.
    pub fn go_on(&self, host: &str) {
        if let Some(stalls) = self.state().stalls.get_mut(host) {
            *stalls = stalls.saturating_sub(1);
        }
        self.cables(host).iter().for_each(Cable::go_on);
    }

    /// Lays a cable to a host.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn dial(&self, host: &str) -> io::Result<Pipe> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (near, far, handle) = cable(&self.clock, self.conditions);
        let mut state = self.state();
        state.ports = state.ports.wrapping_add(1);
        let remote = SocketAddr::from(([192, 0, 2, 1], state.ports));
        let listener = state.listeners.get(host).ok_or_else(refused)?.clone();
        let stalls = state.stalls.get(host).copied().unwrap_or_default();
        (0..stalls).for_each(|_| handle.stall());
        state.cables.push((host.to_owned(), handle));
        drop(state);
        listener
            .unbounded_send((far, remote))
            .map_err(|_| refused())?;
        Ok(near)
    }

    async fn connect(&self, request: ConnectRequest) -> Result<Box<dyn Socket>, ConnectError> {
        let target = Target::of(&request.url)?;
        let there_and_back = self.conditions.latency_max * 2;
        let runtime = &request.runtime;
        runtime.sleep_until(runtime.now() + there_and_back).await;
        let near = self.dial(&target.host)?;
        request.handshake(&target, near).await
    }
}

async fn accept(receiver: Arc<Mutex<mpsc::UnboundedReceiver<Accepted>>>) -> io::Result<Accepted> {
    let next = poll_fn(|cx| {
        let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.poll_next_unpin(cx)
    });
    match next.await {
        Some(accepted) => Ok(accepted),
        // Another one listens in its place.
        None => std::future::pending().await,
    }
}

impl Connector for Network {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        Box::pin(self.connect(request))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}
