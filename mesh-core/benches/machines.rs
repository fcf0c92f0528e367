//! One command through a connection, one event to a room, one update of a record: `cargo bench -p mesh-core --bench machines`.

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::Criterion;
use mesh_core::{
    backend::{ConnectionId, Json, Name, Op, Record, Reply},
    connection::{Config, Connection, Received},
    instance::{Action, Instance, Options, RecordWrite, Seeded},
    protocol::{Dialect, builtin::RecordMode, encode},
    websocket::{Message, TextFrame},
};

#[path = "allocations.rs"]
mod allocations;
use allocations::bench;

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
fn origin() -> Instant {
    Instant::now()
}

/// From the text of a command to the frames that leave: parse, accept, reply, take.
fn command_round_trip(criterion: &mut Criterion) {
    for (name, size) in [
        ("machines/command/64B", 64),
        ("machines/command/16KiB", 16 << 10),
    ] {
        let config = Arc::new(Config::default());
        let now = origin();
        let mut connection = Connection::new(Arc::clone(&config), now);
        let payload = format!("\"{}\"", "x".repeat(size));
        let text = format!(r#"{{"id":7,"command":"echo","payload":{payload}}}"#);
        let mut outgoing = VecDeque::new();
        bench(criterion, name, || {
            let frame = config.read(Message::Text(black_box(&text)));
            if let Received::Command(command) = connection.handle_frame(frame, now) {
                let reply = encode::reply_raw(command.id, &command.name, command.payload);
                connection.handle_reply(command.token, &command.name, reply, now);
            }
            connection.take_outgoing(&mut outgoing);
            outgoing.clear();
            connection.handle_unsent(0);
        });
    }
}

/// An event for a room, into the queue of each of its members and out again.
fn room_fan_out(criterion: &mut Criterion) {
    for (name, members) in [
        ("machines/fan-out/10", 10),
        ("machines/fan-out/1000", 1_000_u32),
    ] {
        let now = origin();
        let config = Arc::new(Config::default());
        let mut connections: Vec<Connection> = (0..members)
            .map(|_| Connection::new(Arc::clone(&config), now))
            .collect();
        let room: Name = "room".into();
        let mut instance = shard();
        for member in 0..members {
            let id = ConnectionId::new(format!("i.{member}"));
            instance.join(&room, id, member, false, ());
            answer_everything(&mut instance);
        }
        let nobody = Arc::new([]) as Arc<[ConnectionId]>;
        let mut outgoing = VecDeque::new();
        bench(criterion, name, || {
            let event = encode::event_raw("tick", black_box(r#""0123456789abcdef""#));
            instance.deliver_room(&room, &nobody, &event);
            while let Some(action) = instance.poll_action() {
                if let Action::Deliver { to, frame, .. } = action {
                    for member in to.handles() {
                        deliver(&mut connections[*member as usize], &frame, now);
                    }
                }
            }
            for connection in &mut connections {
                connection.take_outgoing(&mut outgoing);
                outgoing.clear();
                connection.handle_unsent(0);
            }
        });
    }
}

/// A change of one field of a record: the difference, the store's answer, one frame for all, into each queue and out again.
fn record_update(criterion: &mut Criterion) {
    for (name, members, fields) in [
        ("machines/record/10 KiB to 100", 100_u32, 100_u32),
        ("machines/record/1 MB to 10", 10, 10_000),
    ] {
        let now = origin();
        let config = Arc::new(Config::default());
        let mut connections: Vec<Connection> = (0..members)
            .map(|_| Connection::new(Arc::clone(&config), now))
            .collect();
        let record: Name = "record".into();
        let value = |tick: u64| -> Json {
            let field = |n: u32| format!(r#""field{n}":"{}""#, "x".repeat(85));
            let fields: Vec<String> = (0..fields).map(field).collect();
            let (before, after) = fields.split_at(fields.len() / 2);
            format!(
                r#"{{{},"tick":{tick},{}}}"#,
                before.join(","),
                after.join(",")
            )
            .into()
        };
        let values = [value(1), value(2)];
        let mut instance = shard();
        for member in 0..members {
            let id = ConnectionId::new(format!("i.{member}"));
            instance.subscribe_record(&record, id, member, RecordMode::Patch, (), now);
            answer_everything(&mut instance);
        }
        let mut outgoing = VecDeque::new();
        let mut turn = 0;
        bench(criterion, name, || {
            turn = 1 - turn;
            let write = RecordWrite::Replace(black_box(values[turn].clone()));
            instance.write_record(&record, write, (), now);
            while let Some(action) = instance.poll_action() {
                match action {
                    Action::Backend { token, op } => {
                        instance.handle_backend(token, Ok(stored(&op)), now);
                    }
                    Action::DeliverRecord { record, to, frame } => {
                        for member in to.handles() {
                            let member = &mut connections[*member as usize];
                            member.handle_record(&record, frame.clone(), now);
                        }
                    }
                    _ => {}
                }
            }
            for connection in &mut connections {
                connection.take_outgoing(&mut outgoing);
                assert_eq!(outgoing.len(), 1);
                outgoing.clear();
                connection.handle_unsent(0);
            }
        });
    }
}

/// What a store answers that is always up to date.
fn stored(op: &Op) -> Reply {
    match op {
        Op::PublishRecord { base, .. } => Reply::Published {
            first: base.number + 1,
        },
        Op::Record { .. } => Reply::Record(Record::default()),
        _ => Reply::Done,
    }
}

fn deliver(connection: &mut Connection, frame: &TextFrame, now: Instant) {
    connection.handle_event(frame.clone(), now);
}

fn shard() -> Instance<u32, ()> {
    Instance::new(&Options {
        hasher: Seeded::new(&[1; 32]),
        seed: [1; 32],
        dialect: Dialect::MESH,
        kept_bytes_max: 1 << 20,
        listed_bytes_max: 1 << 20,
        record_bytes_max: 1 << 20,
        record_check_interval: Duration::from_secs(10),
    })
}

fn answer_everything(instance: &mut Instance<u32, ()>) {
    while let Some(action) = instance.poll_action() {
        if let Action::Backend { token, op } = action {
            let reply = match op {
                Op::JoinRoom { .. } => Reply::Joined {
                    new: true,
                    generation: 0,
                },
                op => stored(&op),
            };
            instance.handle_backend(token, Ok(reply), origin());
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    command_round_trip(&mut criterion);
    room_fan_out(&mut criterion);
    record_update(&mut criterion);
    criterion.final_summary();
}
