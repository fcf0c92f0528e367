//! Leases: to register, to stay alive, to clean up behind those that are over.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use mesh_core::backend::{BackendError, ConnectionId, InstanceId, Name, Notice, Reply};
use redis::{Cmd, Value};

use crate::{
    ConnectError,
    connection::{Failure, Session, SharedSession},
    decode,
    driver::Event,
    keys::{Incarnation, PARTITIONS_AT_ONCE, Partition},
    lock,
    ops::MARK_SECONDS,
    random, scripts,
    shared::{Identity, Shared, usage},
    stats::Counters,
};

/// The version of the key space's format.
const VERSION: &str = "1";

/// How long a tombstone stands, in seconds: tenfold longer than an operation can be under way.
const TOMBSTONE_SECONDS: &str = "120";

/// How many dead instances one heartbeat takes on.
const REAPED_AT_ONCE: &str = "16";

/// How many messages are kept for an instance that is away.
const KEPT_MAX: &str = "1000";

/// How many entries one page has, about.
const PAGE: &str = "1000";

/// How many entries one script gets at most.
const ENTRIES_PER_SCRIPT: usize = 1_000;

/// What came of a heartbeat.
pub(crate) enum Beat {
    Alive {
        /// How long until another's lease or claim ends.
        next: Option<Duration>,
        /// Those that this instance is to clean up behind.
        claimed: Vec<String>,
    },
    Dead,
    /// The lease is not renewed, as far as is known.
    Failed(String),
}

impl Shared {
    fn lease_ms(&self) -> String {
        self.config.lease.as_millis().to_string()
    }

    /// What the key space has to be: the version and, with sharded topics, a word that says so.
    fn format(&self) -> String {
        format_of(self.config.sharded)
    }

    fn format_error(&self, found: String) -> ConnectError {
        let other = !self.config.sharded;
        if found == format_of(other) {
            return ConnectError::Sharding { found: other };
        }
        ConnectError::Format {
            found,
            expected: self.format(),
        }
    }

    /// A claim lasts two leases, and every heartbeat renews it.
    fn claim_ms(&self) -> String {
        (self.config.lease * 2).as_millis().to_string()
    }
}

fn format_of(sharded: bool) -> String {
    format!("{VERSION}{}", if sharded { " sharded" } else { "" })
}

/// How long the number is, in bytes.
const NOTE_ID: usize = 16;

/// A message that was kept for an instance: a random number in hexadecimal, by which it is known, and the message.
#[derive(Debug)]
pub(crate) struct Note(Vec<u8>);

impl Note {
    fn id(&self) -> Vec<u8> {
        self.0.iter().take(NOTE_ID).copied().collect()
    }

    fn message(&self) -> Bytes {
        self.0.iter().skip(NOTE_ID).copied().collect()
    }
}

/// What came of a registration.
enum Registration {
    Done {
        data_kept: Option<bool>,
        kept: Vec<Note>,
    },
    Format(String),
    /// By this incarnation.
    Used(String),
}

/// Registers the instance after an outage, if it is open; before that only the key space is looked at.
pub(crate) async fn register(
    shared: &Arc<Shared>,
    session: &Session,
) -> Result<Option<bool>, ConnectError> {
    let unreachable = |failure: Failure| ConnectError::Unreachable {
        address: shared.config.address(),
        reason: match failure {
            Failure::Full(reason) | Failure::Lost(reason) | Failure::Refused(reason) => reason,
            Failure::Dead => "the incarnation is over".to_owned(),
        },
    };
    let drawn = lock(&shared.identity).draw(random::bits());
    let Some((instance, incarnation, mut previous)) = drawn else {
        let format = shared.format();
        let keys = [shared.keys.leases(), shared.keys.format()];
        let cmd = scripts::INSTANCE_LOOK.call(keys, [format.as_bytes()]);
        let found = session
            .send(&cmd)
            .await
            .and_then(decode::maybe_text)
            .map_err(unreachable)?;
        return match found {
            Some(found) => Err(shared.format_error(found)),
            None => Ok(None),
        };
    };
    loop {
        let done = register_as(shared, session, &instance, &incarnation, &previous).await;
        let holder = match done.map_err(unreachable)? {
            Registration::Done { data_kept, kept } => {
                let _ = session.incarnation.set(incarnation);
                let _ = session.kept.set(kept);
                return Ok(data_kept);
            }
            Registration::Format(found) => return Err(shared.format_error(found)),
            Registration::Used(holder) => Incarnation::parse(&holder),
        };
        // After a failover it may be this instance, as it was before its latest returns.
        let own = holder.and_then(|holder| lock(&shared.identity).take_back(&holder));
        previous = own.ok_or_else(|| ConnectError::Unreachable {
            address: shared.config.address(),
            reason: format!("the id {instance} is another instance's by now"),
        })?;
    }
}

/// Takes a lease and entombs the earlier incarnations: nothing that they began takes effect any more.
async fn register_as(
    shared: &Arc<Shared>,
    session: &Session,
    instance: &InstanceId,
    incarnation: &Incarnation,
    previous: &[Incarnation],
) -> Result<Registration, Failure> {
    let (lease, claim, format) = (shared.lease_ms(), shared.claim_ms(), shared.format());
    let mut arguments = vec![
        instance.as_str().as_bytes(),
        incarnation.as_str().as_bytes(),
        lease.as_bytes(),
        claim.as_bytes(),
        format.as_bytes(),
    ];
    arguments.extend(previous.iter().map(|it| it.as_str().as_bytes()));
    let [leases, dying, format, birth] = shared.keys.all_instances();
    let keys = [leases, dying, format, birth, shared.keys.kept(instance)];
    let cmd = scripts::INSTANCE_REGISTER.call(keys, arguments);
    Counters::add(&shared.counters.commands, 1);
    let reply = decode::list(session.send(&cmd).await?)?;
    let mut reply = reply.into_iter();
    let kind = decode::text(reply.next().unwrap_or(Value::Nil))?;
    let detail = decode::maybe_text(reply.next().unwrap_or(Value::Nil))?.unwrap_or_default();
    match &*kind {
        "used" => return Ok(Registration::Used(detail)),
        "format" => return Ok(Registration::Format(detail)),
        _ => {}
    }
    let before = lock(&shared.identity).birth.replace(detail.clone());
    let unburied = lock(&shared.identity).unburied();
    for incarnation in unburied {
        entomb(shared, session, &incarnation).await?;
        lock(&shared.identity).bury(incarnation);
    }
    let kept = reply.map(|note| decode::bytes(note).map(Note));
    Ok(Registration::Done {
        data_kept: before.map(|before| before == detail),
        kept: kept.collect::<Result<_, _>>()?,
    })
}

/// Ends an incarnation in every partition: whatever it began, or another begins for it, changes nothing any more.
async fn entomb(
    shared: &Shared,
    session: &Session,
    incarnation: &Incarnation,
) -> Result<(), Failure> {
    let tombs = Partition::all().map(|at| {
        let key = shared.keys.tombstone(at, incarnation);
        let cmd = scripts::INSTANCE_ENTOMB.call([key], [TOMBSTONE_SECONDS.as_bytes()]);
        Counters::add(&shared.counters.commands, 1);
        async move { session.send(&cmd).await }
    });
    try_join_all(tombs).await.map(drop)
}

/// Renews the lease.
pub(crate) async fn heartbeat(shared: &Arc<Shared>, may_reap: bool) -> Beat {
    let alive = Beat::Alive {
        next: None,
        claimed: Vec::new(),
    };
    let session = match shared.session() {
        Ok(session) => session,
        Err(error) => return Beat::Failed(error.to_string()),
    };
    let Some(incarnation) = session.incarnation.get() else {
        return alive;
    };
    let (member, claims) = {
        let identity = lock(&shared.identity);
        let Some(instance) = identity.instance.as_ref().filter(|_| !identity.closed) else {
            return alive;
        };
        let own = identity
            .previous
            .iter()
            .map(|it| Identity::member(it, instance));
        let claims: Vec<_> = own.chain(identity.reaping.iter().cloned()).collect();
        (Identity::member(incarnation, instance), claims)
    };
    let (lease, claim) = (shared.lease_ms(), shared.claim_ms());
    let mut arguments = vec![
        member.as_bytes(),
        lease.as_bytes(),
        claim.as_bytes(),
        if may_reap { b"1" } else { b"0" },
        REAPED_AT_ONCE.as_bytes(),
    ];
    arguments.extend(claims.iter().map(String::as_bytes));
    let keys = [shared.keys.leases(), shared.keys.dying()];
    let cmd = scripts::INSTANCE_HEARTBEAT.call(keys, arguments);
    let reply = match shared.send(&session, &cmd).await {
        Ok(reply) => reply,
        Err(error) => return Beat::Failed(error.to_string()),
    };
    match read_beat(reply) {
        Ok(beat) if lock(&shared.identity).closed => match beat {
            Beat::Dead => alive,
            beat => beat,
        },
        Ok(beat) => beat,
        Err(failure) => Beat::Failed(shared.failed(&session, failure).to_string()),
    }
}

pub(crate) fn read_beat(reply: Value) -> Result<Beat, Failure> {
    let mut reply = decode::list(reply)?.into_iter();
    if decode::text(reply.next().unwrap_or(Value::Nil))? == "dead" {
        return Ok(Beat::Dead);
    }
    let next = decode::integer(&reply.next().unwrap_or(Value::Nil))?;
    let claimed = reply.map(decode::text).collect::<Result<_, _>>()?;
    Ok(Beat::Alive {
        next: u64::try_from(next).ok().map(Duration::from_millis),
        claimed,
    })
}

/// Cleans up behind a dead instance and tells which memberships ended. What cannot be finished is taken over by
/// another instance once the claim ends.
pub(crate) async fn reap(shared: &Arc<Shared>, member: &str) {
    let Some(incarnation) = member.get(..16).and_then(Incarnation::parse) else {
        return;
    };
    let Ok(session) = shared.session() else {
        return;
    };
    lock(&shared.identity).reaping.push(member.to_owned());
    let work = async {
        entomb(shared, &session, &incarnation).await?;
        clean(shared, &session, &incarnation, true).await?;
        let_go(shared, &session, &[member.to_owned()]).await
    };
    match work.await {
        Ok(()) => {
            Counters::add(&shared.counters.instances_reaped, 1);
            tracing::info!(
                instance = member.get(17..),
                "cleaned up behind a dead instance"
            );
        }
        Err(failure) => {
            shared.failed(&session, failure);
        }
    }
    lock(&shared.identity).reaping.retain(|it| it != member);
}

/// Gives leases and claims back.
async fn let_go(shared: &Shared, session: &Session, members: &[String]) -> Result<(), Failure> {
    let keys = shared.keys.all_instances();
    let cmd = scripts::INSTANCE_CLOSE.call(keys, members.iter().map(String::as_bytes));
    Counters::add(&shared.counters.commands, 1);
    session.send(&cmd).await.map(drop)
}

/// Removes all that still belongs to an incarnation.
async fn clean(
    shared: &Shared,
    session: &Session,
    incarnation: &Incarnation,
    tell: bool,
) -> Result<(), Failure> {
    stream::iter(Partition::all())
        .map(Ok)
        .try_for_each_concurrent(PARTITIONS_AT_ONCE, |at| async move {
            clean_members(shared, session, incarnation, at, tell).await?;
            clean_connections(shared, session, incarnation, at).await
        })
        .await
}

async fn clean_members(
    shared: &Shared,
    session: &Session,
    incarnation: &Incarnation,
    at: Partition,
    tell: bool,
) -> Result<(), Failure> {
    let keys = &shared.keys;
    let index = keys.member_index(at, incarnation);
    let pairs = |entries: &[String]| -> Vec<(Name, ConnectionId)> {
        let pairs = entries.iter().filter_map(|entry| entry.split_once('\0'));
        pairs
            .map(|(connection, room)| (room.into(), connection.into()))
            .collect()
    };
    let call = |entries: &[String]| {
        let pairs = pairs(entries);
        let mut names = vec![index.clone(), keys.generations(at), keys.room_documents(at)];
        let mut arguments = vec![incarnation.as_str().as_bytes()];
        for (room, connection) in &pairs {
            names.push(keys.members(room));
            arguments.extend([connection.as_str().as_bytes(), room.as_bytes()]);
        }
        scripts::MEMBERS_REAP.call(names, arguments)
    };
    let ended = |entries: &[String], reply: Value| {
        let ended = decode::list(reply)?.into_iter();
        let left = pairs(entries).into_iter().zip(ended);
        let left = left.filter(|(_, ended)| *ended == Value::Int(1));
        let left: Vec<_> = left.map(|(member, _)| member).collect();
        if tell && !left.is_empty() {
            shared.inbox.push(Notice::RoomsLeft(left));
        }
        Ok(())
    };
    sweep(shared, session, &index, call, ended).await
}

async fn clean_connections(
    shared: &Shared,
    session: &Session,
    incarnation: &Incarnation,
    at: Partition,
) -> Result<(), Failure> {
    let index = shared.keys.connection_index(at, incarnation);
    let names = [shared.keys.connections(at), index.clone()];
    let call = |entries: &[String]| {
        let first = std::iter::once(incarnation.as_str().as_bytes());
        let arguments = first.chain(entries.iter().map(String::as_bytes));
        scripts::CONNECTIONS_REAP.call(&names, arguments)
    };
    sweep(shared, session, &index, call, |_, _| Ok(())).await
}

/// Empties an index: page by page a script gets its entries, and what it answered is looked at.
async fn sweep(
    shared: &Shared,
    session: &Session,
    index: &str,
    call: impl Fn(&[String]) -> Cmd,
    done: impl Fn(&[String], Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut cursor = "0".to_owned();
    let mut clean = true;
    loop {
        let mut cmd = redis::cmd("SSCAN");
        cmd.arg(index).arg(&cursor).arg("COUNT").arg(PAGE);
        Counters::add(&shared.counters.commands, 1);
        let (next, entries) = decode::page(session.send(&cmd).await?)?;
        for entries in entries.chunks(ENTRIES_PER_SCRIPT) {
            clean = false;
            Counters::add(&shared.counters.commands, 1);
            done(entries, session.send(&call(entries)).await?)?;
        }
        cursor = next;
        // Once more after a pass that found something: entries may move while they are scanned.
        if cursor == "0" && std::mem::replace(&mut clean, true) {
            return Ok(());
        }
    }
}

impl Shared {
    /// [`Op::OpenInstance`].
    pub(crate) async fn open(
        self: &Arc<Self>,
        instance: InstanceId,
    ) -> Result<Reply, BackendError> {
        if instance.as_str().is_empty() || instance.as_str().contains('.') {
            return Err(usage("an instance's id is not empty and has no dot"));
        }
        let session = self.session()?;
        let (incarnation, previous) = {
            let mut identity = lock(&self.identity);
            if identity.closed {
                return Err(usage("the instance is closed"));
            }
            if identity.instance.is_some() {
                return Err(usage("the instance is open already"));
            }
            identity.instance = Some(instance.clone());
            let Some((_, incarnation, previous)) = identity.draw(random::bits()) else {
                return Err(usage("the instance is closed"));
            };
            (incarnation, previous)
        };
        let done = register_as(self, &session, &instance, &incarnation, &previous).await;
        let error = match done {
            Ok(Registration::Done { .. }) => {
                lock(&self.identity).served = true;
                let _ = session.incarnation.set(incarnation);
                return Ok(Reply::Done);
            }
            Ok(Registration::Format(found)) => {
                BackendError::Usage(self.format_error(found).to_string())
            }
            Ok(Registration::Used(_)) => usage("the instance is open already"),
            Err(failure) => self.failed(&session, failure),
        };
        lock(&self.identity).instance = None;
        Err(error)
    }

    /// [`Op::CloseInstance`].
    pub(crate) async fn close(self: &Arc<Self>) -> Result<Reply, BackendError> {
        let (session, incarnations, instance, current) = {
            let mut identity = lock(&self.identity);
            if identity.closed {
                return Err(usage("the instance is closed"));
            }
            let Some(instance) = identity.instance.clone() else {
                return Err(usage("the instance is not open yet"));
            };
            identity.closed = true;
            let all = identity
                .previous
                .iter()
                .chain(&identity.incarnation)
                .cloned();
            let (all, current) = (all.collect::<Vec<_>>(), identity.incarnation.clone());
            (self.session(), all, instance, current)
        };
        let result = match session {
            Ok(session) => {
                let work = async {
                    // What comes behind the cleaning would stay for ever.
                    if let Some(current) = current.filter(|_| self.is_busy()) {
                        entomb(self, &session, &current).await?;
                    }
                    self.clean_up(&session, &incarnations, &instance).await
                };
                work.await.map_err(|failure| self.failed(&session, failure))
            }
            Err(error) => Err(error),
        };
        let _ = self.events.unbounded_send(crate::driver::Event::Close);
        result.map(|()| Reply::Done)
    }

    async fn clean_up(
        &self,
        session: &SharedSession,
        incarnations: &[Incarnation],
        instance: &InstanceId,
    ) -> Result<(), Failure> {
        for incarnation in incarnations {
            clean(self, session, incarnation, false).await?;
        }
        let members: Vec<_> = incarnations
            .iter()
            .map(|it| Identity::member(it, instance))
            .collect();
        let_go(self, session, &members).await
    }

    /// [`Op::KeepFor`].
    pub(crate) async fn keep_for(
        self: &Arc<Self>,
        instance: &InstanceId,
        message: Option<&Bytes>,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let keys = [self.keys.leases(), self.keys.kept(instance)];
        let note = message
            .map(|message| [format!("{:016x}", random::bits()).as_bytes(), message].concat());
        let mut arguments = vec![
            instance.as_str().as_bytes(),
            KEPT_MAX.as_bytes(),
            MARK_SECONDS.as_bytes(),
        ];
        arguments.extend(note.as_deref());
        let cmd = scripts::INSTANCE_KEEP.call(keys, arguments);
        let reply = self.send(&open.session, &cmd).await?;
        match decode::integer(&reply).map_err(|failure| self.failed(&open.session, failure))? {
            -1 => Err(BackendError::Full(format!(
                "{KEPT_MAX} messages wait for the instance {instance} to come back"
            ))),
            kept => Ok(Reply::Flag(kept == 1)),
        }
    }

    /// What was kept for this instance, and was not told before; it is let go of in the store.
    pub(crate) fn take_kept(self: &Arc<Self>, session: &SharedSession) -> Vec<Bytes> {
        let kept = session.kept.get().map_or(&[][..], Vec::as_slice);
        let (told, member) = {
            let mut identity = lock(&self.identity);
            let told = std::mem::take(&mut identity.told);
            identity.told = kept.iter().map(Note::id).collect();
            let member = identity.instance.as_ref().zip(session.incarnation.get());
            let member = member.map(|(instance, incarnation)| {
                let keys = [self.keys.leases(), self.keys.kept(instance)];
                (keys, Identity::member(incarnation, instance))
            });
            (told, member)
        };
        if let (Some((keys, member)), false) = (member, kept.is_empty()) {
            let number = kept.len().to_string();
            let arguments = [member.as_bytes(), number.as_bytes()];
            let cmd = scripts::INSTANCE_TAKEN.call(keys, arguments);
            let (shared, session) = (Arc::clone(self), Arc::clone(session));
            let _ = self.events.unbounded_send(Event::Work(Box::pin(async move {
                // Without it they come once more, and are known.
                let _ = shared.send(&session, &cmd).await;
            })));
        }
        let new = kept.iter().filter(|note| !told.contains(&note.id()));
        new.map(Note::message).collect()
    }

    /// [`Op::Settle`].
    pub(crate) async fn settle(self: &Arc<Self>, epoch: u64) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        if open.session.epoch != epoch {
            let again = "the store was lost once more".to_owned();
            return Err(BackendError::Unavailable(again));
        }
        let previous = lock(&self.identity).previous.clone();
        // Their tombstones stand since the registration.
        let result = self
            .clean_up(&open.session, &previous, &open.instance)
            .await;
        result.map_err(|failure| self.failed(&open.session, failure))?;
        lock(&self.identity).settle(&previous);
        Ok(Reply::Done)
    }
}
