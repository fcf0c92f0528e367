//! The servers of a simulated cluster, and the application on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::backend::ConnectionId;
use mesh_core::driver::{
    Accept, Call, CloseCode, CommandError, Context, Interceptor, Membership, MeshServer, Outcome,
    Refusal, RoomLeave, Runtime, UpgradeRequest, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Node;
use super::caller::{CHANNELS, RECORDS, ROOMS};
use super::world::{Mark, STAFF, VIP, World};

/// How many messages the channels keep.
pub(super) const HISTORY: usize = 10;

/// How long a server that stops waits for what is under way.
pub(super) const DRAIN: Duration = Duration::from_secs(3);

/// How often servers ask their clients for a sign of life.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(3);

/// What a connection is closed with that the application wants to be gone.
pub(super) const KICKED: CloseCode = CloseCode::new(4_000).expect("an application's own");

/// A room that nobody is in, whose metadata is replaced.
pub(super) const PLAN: &str = "plan";

/// Longer than any run: what was deleted is not forgotten while somebody may hold it.
const EVER: Duration = Duration::from_secs(3_600);

/// How often records are held against the store.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// What a server keeps for a client that does not read.
pub(super) const QUEUE_BYTES_MAX: usize = 256 << 10;

/// A message, by which its reader knows what came before.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Message {
    pub from: usize,
    pub mark: Mark,
    /// When its sender called for it, in microseconds.
    pub sent: u64,
    /// How many connections its sender had had.
    pub via: u64,
}

/// What the application's commands are about: a room, a channel, a record or a connection.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct About {
    pub name: String,
    pub message: Message,
    /// The sender himself is not told.
    pub others: bool,
}

/// What is for several connections.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Several {
    pub names: Vec<String>,
    pub message: Message,
}

/// A write of a record.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Write {
    pub record: String,
    pub how: How,
    pub value: Value,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum How {
    Replace,
    Merge,
    DeepMerge,
    Delete,
}

/// What takes some time.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Slow {
    pub mark: Mark,
    pub millis: u64,
}

/// Counts commands from their beginning to their outcome.
struct Count(Arc<AtomicUsize>);

impl Interceptor for Count {
    fn before(&self, _: &Context) -> Verdict {
        self.0.fetch_add(1, Ordering::Relaxed);
        Verdict::Continue
    }

    fn after(&self, _: &Call, _: &Outcome) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A host of the cluster.
pub(super) struct Host {
    pub name: String,
    pub node: Node,
    pub server: MeshServer,
    pub wire: u64,
    /// The commands of a connection wait for each other.
    pub is_sequential: bool,
    /// Commands that began and have no outcome yet.
    pub under_way: Arc<AtomicUsize>,
    pub is_down: bool,
    /// It was told to stop, then.
    pub stopping_since: Option<Duration>,
}

impl Host {
    pub(super) fn start(world: &World, n: usize) -> Self {
        let (node, runtime) = world.process();
        let backend = world.store.backend();
        let wire = backend.wire();
        let (come, gone, left) = (world.clone(), world.clone(), world.clone());
        let is_sequential = world.clock.once_in(4);
        let builder = MeshServer::builder()
            .backend(backend)
            .on_connection(move |connection| {
                if !come.state().told_of.insert(connection.id().clone()) {
                    come.violation(format_args!("{} comes twice", connection.id()));
                }
                std::future::ready(())
            })
            .on_disconnection(move |connection| {
                if !gone.state().told_of.remove(connection.id()) {
                    gone.violation(format_args!("{} goes, and is not there", connection.id()));
                }
                std::future::ready(())
            })
            .on_room_leave(move |leave: RoomLeave| {
                left.left(leave.room, leave.connection);
                std::future::ready(())
            })
            .ping_interval(PING_INTERVAL)
            .drain_time(DRAIN)
            .record_check_interval(CHECK_INTERVAL)
            .limits(|limits| limits.queue_bytes_max = QUEUE_BYTES_MAX)
            .client_metadata(true)
            .authenticate(async |request: UpgradeRequest| {
                let user = json!({ "user": request.query("user") });
                Accept::with_metadata(&user).map_err(|error| Refusal::forbidden(error.to_string()))
            });
        let builder = if is_sequential {
            builder.sequential()
        } else {
            builder
        };
        let server = builder.build_on(Arc::clone(&runtime));
        let under_way = Arc::new(AtomicUsize::new(0));
        server.add_interceptor(Count(Arc::clone(&under_way)));
        server.add_middleware(async |ctx: Context| match ctx.command() {
            "barred" => Err(CommandError::new("nobody may").with_code("EBARRED")),
            _ => Ok(()),
        });
        expose(world, &server);
        register(world, &server, runtime, is_sequential);
        administer(world, &server);
        let name = format!("host{n}.test");
        world.network.listen(&name, node, &server);
        Self {
            name,
            node,
            server,
            wire,
            is_sequential,
            under_way,
            is_down: false,
            stopping_since: None,
        }
    }
}

/// What clients may reach by themselves.
fn expose(world: &World, server: &MeshServer) {
    for channel in CHANNELS {
        server.expose_channel(channel);
    }
    for room in ROOMS {
        server.expose_room(room);
        server.expose_room_metadata(room);
    }
    let asked = world.clone();
    server
        .expose_room(VIP)
        .guard(move |_, _| std::future::ready(asked.state().is_vip_open));
    for record in RECORDS.into_iter().chain(["pulse"]) {
        server.expose_record(record);
    }
    server.expose_writable_record("doc");
    // Whoever may write may not read where a guard of its own says so.
    server.expose_writable_record("secret");
    server
        .expose_record("secret")
        .guard(|_, _| std::future::ready(false));
}

fn register(world: &World, server: &MeshServer, runtime: Arc<dyn Runtime>, is_sequential: bool) {
    server.register_command("double", async |ctx: Context<u64>| Ok(ctx.payload * 2));
    server.register_command("refuse", async |ctx: Context<u64>| {
        let error = CommandError::new(format!("no {}", ctx.payload));
        Err::<(), _>(error.with_code("ENO"))
    });
    let handled = world.clone();
    server.register_command("slow", move |ctx: Context<Slow>| {
        let (runtime, handled) = (Arc::clone(&runtime), handled.clone());
        async move {
            let pause = Duration::from_millis(ctx.payload.millis);
            let now = handled.now();
            let work = now..now + pause;
            let is_first = {
                let mut state = handled.state();
                state.handled.insert(ctx.payload.mark, work);
                state.at_work.insert(ctx.connection.id().clone())
            };
            if is_sequential && !is_first {
                let id = ctx.connection.id();
                handled.violation(format_args!("two commands of {id} run at once"));
            }
            runtime.sleep_until(runtime.now() + pause).await;
            handled.state().at_work.remove(ctx.connection.id());
            Ok(ctx.payload.mark)
        }
    });
    server.register_command("shout", async |ctx: Context<About>| {
        let (name, message) = (&ctx.payload.name, ctx.payload.message.clone());
        let (server, event) = (&ctx.server, format!("shout {name}"));
        if ctx.payload.others {
            let me = [&ctx.connection];
            server
                .broadcast_room_exclude(name, &event, message, me)
                .await?;
        } else {
            server.broadcast_room(name, &event, message).await?;
        }
        Ok(true)
    });
    server.register_command("announce", async |ctx: Context<About>| {
        let (server, message) = (&ctx.server, ctx.payload.message.clone());
        if ctx.payload.others {
            let me = [&ctx.connection];
            server.broadcast_exclude("announce", message, me).await?;
        } else {
            server.broadcast("announce", message).await?;
        }
        Ok(true)
    });
    server.register_command("tell", async |ctx: Context<Several>| {
        let Several { names, message } = &ctx.payload;
        let names = names.iter().map(String::as_str);
        ctx.server
            .broadcast_to("whisper", message.clone(), names)
            .await?;
        Ok(true)
    });
    server.register_command("enlist", async |ctx: Context<()>| {
        Ok(ctx.server.add_to_room(STAFF, &ctx.connection).await?)
    });
    server.register_command("dismiss", async |ctx: Context<()>| {
        Ok(ctx.server.remove_from_room(STAFF, &ctx.connection).await?)
    });
    server.register_command("note", async |ctx: Context<About>| {
        let About { name, message, .. } = &ctx.payload;
        let note = json!({ message.from.to_string(): message.mark });
        ctx.server.rooms().merge_metadata(name, &note).await?;
        Ok(true)
    });
    server.register_command("whisper", async |ctx: Context<About>| {
        let About { name, message, .. } = &ctx.payload;
        ctx.server
            .send_to(name.as_str(), "whisper", message.clone())
            .await?;
        Ok(true)
    });
    server.register_command("publish", async |ctx: Context<About>| {
        let About { name, message, .. } = &ctx.payload;
        let text = serde_json::to_string(message).unwrap_or_default();
        ctx.server.publish_to_channel(name, &text, HISTORY).await?;
        Ok(true)
    });
    server.register_command("write", async |ctx: Context<Write>| {
        let Write { record, how, value } = &ctx.payload;
        Ok(match how {
            How::Replace => Some(ctx.server.publish_record_update(record, value).await?),
            How::Merge => Some(ctx.server.merge_record(record, value).await?),
            How::DeepMerge => Some(ctx.server.deep_merge_record(record, value).await?),
            How::Delete => ctx.server.delete_record(record).await?,
        })
    });
    server.register_command("count", async |ctx: Context<()>| {
        let next = |count: Option<u64>| count.unwrap_or_default() + 1;
        Ok(ctx.server.update_record("count", next).await?)
    });
    server.register_command("tag", async |ctx: Context<About>| {
        let About { name, message, .. } = &ctx.payload;
        let tag = json!({ format!("tag{}", message.from): message.mark });
        let connections = ctx.server.connections();
        connections.merge_metadata(name.as_str(), &tag).await?;
        Ok(true)
    });
    server.register_command("clear", async |ctx: Context<()>| {
        ctx.server.clear_room(VIP).await?;
        Ok(true)
    });
    server.register_command("revoke", async |ctx: Context<()>| {
        for id in ctx.server.room_members(VIP).await? {
            ctx.server.revoke(&id, Membership::Room(VIP.into())).await?;
        }
        Ok(true)
    });
    guard(world, server);
}

/// What changes the mind of the guard of [`VIP`].
fn guard(world: &World, server: &MeshServer) {
    let close = world.clone();
    server.register_command("close", move |ctx: Context<()>| {
        let world = close.clone();
        async move {
            {
                let mut state = world.state();
                state.is_vip_open = false;
                state.surveys += 1;
            }
            for id in ctx.server.connections().ids().await? {
                ctx.server.recheck_guards(&id).await?;
            }
            Ok(true)
        }
    });
    let open = world.clone();
    server.register_command("open", move |_: Context<()>| {
        let now = open.now();
        let mut state = open.state();
        state.is_vip_open = true;
        state.opened = now;
        drop(state);
        std::future::ready(Ok(true))
    });
}

/// The user of a connection, as its metadata tells.
type Users = Vec<(String, Value)>;

fn users(all: Vec<(ConnectionId, Option<Value>)>) -> Users {
    let user = |metadata: Option<Value>| metadata.map_or(Value::Null, |it| it["user"].clone());
    (all.into_iter())
        .map(|(id, metadata)| (id.as_str().to_owned(), user(metadata)))
        .collect()
}

/// What an application does to its connections and documents.
fn administer(world: &World, server: &MeshServer) {
    server.register_command("kick", async |ctx: Context<About>| {
        let id = ctx.payload.name.as_str();
        ctx.server.disconnect(id, KICKED, "kicked").await?;
        Ok(true)
    });
    server.register_command("expel", async |ctx: Context<About>| {
        let id = ctx.payload.name.as_str();
        ctx.server.remove_from_all_rooms(id).await?;
        Ok(true)
    });
    server.register_command("belongs", async |ctx: Context<(String, String)>| {
        let (room, id) = &ctx.payload;
        Ok(ctx.server.is_in_room(room, id.as_str()).await?)
    });
    server.register_command("rename", async |ctx: Context<Mark>| {
        let mut metadata: Value = ctx.connection.metadata().await?.unwrap_or_default();
        metadata = json!({ "user": metadata["user"], "name": ctx.payload });
        ctx.connection.set_metadata(&metadata).await?;
        Ok(true)
    });
    server.register_command("plan", async |ctx: Context<Mark>| {
        let plan = json!({ "plan": ctx.payload });
        ctx.server.rooms().set_metadata(PLAN, &plan).await?;
        Ok(true)
    });
    server.register_command("plans", async |ctx: Context<()>| {
        let all = ctx.server.rooms().all_metadata::<Value>().await?;
        Ok(all.get(PLAN).and_then(|plan| plan["plan"].as_u64()))
    });
    server.register_command("roster", async |ctx: Context<String>| {
        let connections = ctx.server.connections();
        Ok(users(
            connections.room_members_metadata(&ctx.payload).await?,
        ))
    });
    let census = world.clone();
    server.register_command("census", move |ctx: Context<()>| {
        census.state().surveys += 1;
        async move { Ok(users(ctx.server.connections().all_metadata().await?)) }
    });
    server.register_command("purge", async |ctx: Context<()>| {
        Ok(ctx.server.purge_deleted(EVER).await?)
    });
    let barred = world.clone();
    server.register_command("barred", move |_: Context<()>| {
        barred.violation("a command ran that a middleware refused");
        std::future::ready(Ok(()))
    });
}
