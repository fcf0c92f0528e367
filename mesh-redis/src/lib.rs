//! The Redis backend of mesh: any number of server instances behave as one.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = mesh_redis::connect("redis://localhost:6379").await?;
//! // MeshServer::builder().backend(backend).build();
//! # Ok(())
//! # }
//! ```
//!
//! It wants Redis 7.0 or later, or Valkey; a [cluster](Builder::cluster) of either as well. One value serves one server
//! instance. Nothing depends on Redis having kept its data: what the instances hold they state again.
//!
//! # Keys
//!
//! All begin with a [prefix](Builder::prefix), `mesh:` by default, but for the histories of channels. Each room and each
//! connection lives in one of 128 partitions, which its name decides; `{pN}` is the hash tag of partition N, so that a
//! script stays within one slot. An *incarnation* is one registration of an instance, 16 hexadecimal digits.
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `{i}:leases` | sorted set | "incarnation instance" → when its lease ends, in ms by Redis' clock |
//! | `{i}:dying` | sorted set | "incarnation instance" → when the claim of who cleans up behind it ends |
//! | `{i}:format` | string | the version of this layout, `1`; with [sharded](Builder::sharded) topics `1 sharded` |
//! | `{i}:birth` | string | the incarnation that found the key space empty; another one means that the data was lost |
//! | `{i}:kept:<instance>` | list, 1 h | what it is to do to connections of its own, once it is back |
//! | `{pN}:c` | hash | connection → "incarnation revision document" |
//! | `{pN}:c:<incarnation>` | set | its connections |
//! | `{pN}:m:<room>` | hash | member → incarnation |
//! | `{pN}:i:<incarnation>` | set | its memberships, "connection\0room" |
//! | `{pN}:g` | hash | room → generation, while it has members or metadata |
//! | `{pN}:rm` | hash | room → metadata |
//! | `{pN}:x:<room>` | string, 1 h | the generation that the last clearing began |
//! | `{pN}:l:<connection>\0<room>` | string, 1 h | the membership was ended by an instance that is not the connection's |
//! | `{pN}:d:<connection>` | string, 1 h | "revision document" that an instance that is not the connection's set |
//! | `{pN}:v:<record>` | hash | `n`, `s`: number and stamp of its version; `d`: its value, unless it is deleted |
//! | `{pN}:vd` | sorted set | deleted record → when, in ms by Redis' clock |
//! | `{pN}:a:<stamp>:<record>` | string, 60 s | the first version that the updates beginning with this stamp made |
//! | `{pN}:t:<incarnation>` | string, 120 s | tombstone: scripts that carry the incarnation are refused |
//! | `history:<channel>` | list | the messages of a channel, newest first |
//!
//! After a clean end of all instances only histories, records and room metadata stay, and what ends by itself.
//!
//! Topics are Redis channels: `all`, `n:<instance>`, `{pN}:r:<room>` and `{pN}:o:<record>` behind the prefix, whose messages are in an
//! envelope of nine bytes (kind, sender); a channel of the application is the Redis channel of the same name, and
//! its messages are bare. A channel whose name begins with the prefix is a usage error. With [sharded](Builder::sharded)
//! topics an instance's is `{pN}:n:<instance>`; it, a room's and a record's are shard channels of Redis. `all` and channels stay
//! classic, and so does `n:<instance>` for what scripts tell.
//!
//! What one instance does to the state of another, to clear a room, to remove a member, to set metadata, the script itself
//! publishes: that the state changed and that its owner is told of it is one step, whatever becomes of who began it.
//!
//! # Operations
//!
//! What Redis is asked for each of them. Where no cost is given it is O(1), and so is what a script does inside. The number of
//! commands never depends on the number of instances.
//!
//! | operation | keys | commands | cost |
//! | --- | --- | --- | --- |
//! | `OpenInstance` | leases, dying, format, birth | 1 script | O(instances), of one script |
//! | `CloseInstance`, `Settle` | indexes, `c`, `m`, `g`, `rm` | 256 `SSCAN`, pipelined, 1 script; and what is found | O(found / 1 000) scripts |
//! | `CloseInstance` with operations under way | `t` | 128 scripts before it, pipelined | |
//! | `KeepFor`, about an instance of which nothing is known | leases, kept | 1 script | O(instances), of one script |
//! | `OpenConnection` | `t`, `c`, `c:` | 1 script | |
//! | `CloseConnection` | `t`, `c`, `c:`, `d`; `t`, `i`, `g`, `rm`, `m`, `l` | 1 script, 1 for each partition with a room of it | O(its rooms) |
//! | `ConnectionMetadata` | `c` | 1 `HGET` | |
//! | `SetConnectionMetadata` | `t`, `c`, `d` | 1 script, with `PUBLISH` for another's | the documents' length |
//! | `Connections` | `c` | 128 scripts, 16 at a time | O(connections / 1 000) pages |
//! | `AllConnectionMetadata` | `c` | 128 `HSCAN`, 16 at a time | O(connections / 1 000) pages |
//! | `JoinRoom` | `t`, `m`, `i`, `g`, `x`, `l` | 1 script | |
//! | `LeaveRoom` | `t`, `m`, `i`, `g`, `rm`, `l` | 1 script, with `PUBLISH` for another's | |
//! | `IsInRoom` | `m` | 1 `HEXISTS` | |
//! | `RoomMembers` | `m` | scripts | O(members / 1 000) pages |
//! | `RoomMembersMetadata` | `m`, `c` | as before, and `HMGET`, pipelined | O(members / 1 000), at least 1 for each partition with one |
//! | `ClearRoom` | `t`, `m`, `g`, `rm`, `x` | 1 script with `PUBLISH` or `SPUBLISH`; in a cluster that is not sharded 1 `PUBLISH` more | the instances that listen |
//! | `ForgetMembers`, at those with members | `t`, `m`, `i` | 1 script for up to 512 | O(members here) |
//! | `RoomMetadata` | `rm` | 1 `HGET` | |
//! | `SetRoomMetadata` | `t`, `m`, `g`, `rm`, `x` | 1 script | the documents' length |
//! | `AllRoomMetadata` | `rm` | 128 `HSCAN`, 16 at a time | O(rooms / 1 000) pages |
//! | `Publish` | | 1 `PUBLISH`, or 1 `SPUBLISH` | the instances that listen |
//! | `PublishChannel` | `history:` where it keeps one | 1 `PUBLISH`, or 1 script of `LPUSH`, `LTRIM`, `PUBLISH` | the instances that listen |
//! | `History` | `history:` | 1 script of `LRANGE`, 32 messages each | O(limit), and no more than may be told |
//! | `PublishRecord` | `v`, `a`, `vd` | 1 script with `PUBLISH` or `SPUBLISH` | the updates, and the instances that listen |
//! | `DeleteRecord` | `v`, `a`, `vd` | 1 script with `PUBLISH` or `SPUBLISH` | the instances that listen |
//! | `Record` | `v` | 1 `HMGET` | |
//! | `RecordVersions` | `v` | 1 script for up to 512 of a partition, 16 at a time | O(records) |
//! | `PurgeDeleted` | `vd`, `v` | 128 scripts, 16 at a time, and 1 for up to 512 of a partition | O(found) |
//! | `Subscribe`, `Unsubscribe` | | 1 command for up to 512 topics; those at one time share it | O(topics) |
//! | the same, of sharded topics | | 1 command for each partition, and 1 for up to 512 more topics of it | O(topics) |
//! | `Restore` | as to open and to join | 1 script for up to 512 entries of a partition, pipelined | O(entries) |
//! | to register after an outage | leases, dying, format, birth, kept, `t` | 1 script, 1 more where something was kept, 128 scripts for each earlier incarnation that is not settled, `SUBSCRIBE`, `SSUBSCRIBE` | O(topics / 512), and up to 128 where sharded |
//! | to stay alive | leases, dying | 1 script every 5 s; 2 `PING` each second, in a cluster 1 `PUBLISH` more and with sharded topics 1 `INFO` for each node | |
//! | to clean up behind a dead instance | as `CloseInstance` | as `CloseInstance`, and 128 scripts | O(found / 1 000) scripts |
//!
//! Scripts are loaded at each connect and called by their hash; a Redis that forgot one gets its text with the call.
//! Replies of pages are bounded by about a thousand entries, or by what Redis keeps packed of a small hash.
//!
//! # Life and death
//!
//! An instance holds a lease of 15 s and renews it every 5 s. Whoever notices that one has ended cleans up behind it, once in
//! the cluster, and tells its server [`Notice::RoomsLeft`]; a claim keeps others from doing the same, and ends if that
//! instance dies too. Nobody cleans up before Redis has answered it without a break for one full lease: after a stall
//! everybody looks dead, and no one is. An instance that was held for dead wrongly learns it from its next heartbeat, or
//! from a tombstone, and registers anew.
//!
//! # Outages
//!
//! All connections, one for commands and one for subscriptions, and those of sharded topics in a cluster, are asked for
//! a sign of life each second. A broken connection, an answer that takes too long, and errors such as `LOADING`,
//! `READONLY`, `CLUSTERDOWN`, `MASTERDOWN` or `MISCONF` mean [`Notice::Lost`]: the connections go, everything
//! under way fails with [`BackendError::Unavailable`], and so does at once what comes after it. Then it connects again,
//! from 50 ms to 2 s apart with full jitter, without end, and the further apart the sooner it was lost again; registers a new incarnation, entombs the one before, takes all
//! topics again, and tells [`Notice::Restored`]. Its `data_kept` is known except for an instance that was never
//! registered. After a failover that forgot an earlier return, the incarnation before that one holds the lease: it is known by
//! name, entombed, and settled once more.
//!
//! Changes of state that were on their way when the connection broke come to nothing after that, as their incarnation
//! is entombed. A message that was on its way may still be published.
//!
//! A Redis that is full refuses what adds to it, with [`BackendError::Full`], and goes on otherwise: leaving, closing, clearing,
//! cleaning up, leases, registrations, stating again, and publishing without a history. It has to
//! keep what it holds, `maxmemory-policy noeviction`: an eviction takes state away that nobody misses in time.
//!
//! A server that does not read its notices loses the oldest messages beyond [`NOTICES_BYTES_MAX`], counted in [`Stats`],
//! but never word of an outage, a death, or what others did to what it holds.
//!
//! # Order
//!
//! Operations take effect in the order in which they are first polled, and a topic's messages arrive in the order in
//! which they took effect. The reply to a `PublishChannel` waits, for a few seconds at most, until this instance has heard
//! the message where it is subscribed: so a publisher's channel messages keep their place among its other events.
//! A Redis that forgot a script is sent it once more, so that then, and only then, a message with a history may fall behind one without.
//!
//! # Redis Cluster
//!
//! Subscriptions go to one node, and messages flood the cluster's bus: each node gets each of them. That an instance hears what is
//! published it makes sure of each second, by a message to itself; if not, it goes to the next of the nodes it was given. An instance publishes
//! all its topics by one node, so that what it publishes keeps its order; a channel's messages go by the node of its
//! history, with and without one, so that each channel keeps its own. With
//! [sharded](Builder::sharded) topics only channels' and those to all instances do; the others stay with the node that
//! has the slot, and each instance has one more connection to every such node.
//!
//! What a script tells of a room that was cleared or of a member that was removed comes from the node of the room, and may be ahead of
//! what its instance published before. Who hears it waits for 250 ms; in the meantime the instance says the same in its place.
//!
//! Commands follow a slot that moves. Sharded topics do not: Redis ends the subscriptions in that slot, which the
//! instances that have any take for an outage, and those that want one later as well. They connect again as after any
//! outage, to the new owner. The same goes for a replica that takes over. An old primary would let one listen as its
//! replica, and says so to nobody who listens nowhere: each node is asked each second whether it still is one, by `INFO replication`,
//! which the user should be allowed. While the cluster tells different owners from different nodes, what is published in that slot may
//! be lost; the outage follows.
//!
//! While a node is away the whole cluster counts as lost. A command is tried again up to twice where a node's
//! connection broke, so that a channel message may be published twice then.
//!
//! # Features
//!
//! | feature | |
//! | --- | --- |
//! | `tokio` (default), `smol` | the runtime; exactly one is needed. With both, tokio where [`connect`] is called inside it, else smol |
//! | `cluster` (default) | [`Builder::cluster`] |
//! | `tls`, `smol-tls` | `rediss://` on that runtime, by rustls with ring |
//!
//! `smol` is for async-std as well: sockets and timers are async-io's on both. Its tasks are on the executor of `smol::spawn`, whichever
//! executor the server has, and end with the backend's last handle.
//!
//! [`Notice::Lost`]: mesh_core::backend::Notice::Lost
//! [`Notice::Restored`]: mesh_core::backend::Notice::Restored
//! [`Notice::RoomsLeft`]: mesh_core::backend::Notice::RoomsLeft
//! [`BackendError::Full`]: mesh_core::backend::BackendError::Full
//! [`BackendError::Unavailable`]: mesh_core::backend::BackendError::Unavailable
//! [`NOTICES_BYTES_MAX`]: mesh_core::backend::NOTICES_BYTES_MAX

#[cfg(not(any(feature = "tokio", feature = "smol")))]
compile_error!("mesh-redis needs a runtime: turn on its feature `tokio` (the default) or `smol`");

mod backend;
mod config;
mod connection;
mod decode;
mod driver;
mod envelope;
mod error;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod instances;
mod keys;
mod link;
mod listeners;
mod notices;
mod ops;
mod random;
mod runtime;
mod scripts;
mod shards;
mod shared;
mod stats;
mod subscriptions;
mod table;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use backend::RedisBackend;
pub use config::Builder;
pub use error::ConnectError;
pub use stats::Stats;

/// Connects to a Redis with the default settings, such as `redis://localhost:6379`.
///
/// # Errors
/// [`ConnectError`]; each says what to do.
pub async fn connect(url: impl Into<String>) -> Result<RedisBackend, ConnectError> {
    builder(url).connect().await
}

/// Settings for a Redis at `redis://user:password@host:port/database`, or `rediss://` with the feature `tls`.
pub fn builder(url: impl Into<String>) -> Builder {
    Builder::new(url)
}

/// What a panic elsewhere leaves behind is whole: nothing is changed by halves under a lock.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The examples of the README, so that its code is compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
