use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures_util::FutureExt;
use mesh_core::protocol::parse;
use serde::Deserialize;
use serde_json::Value;

use super::{RecordSubscription, RecordUpdate};
use crate::{
    RecordChange::{self, Deleted, Reset, Updated},
    driver::{
        ClientError, EventError, MeshClient, SubscriptionEnd,
        buffer::{BYTES_MAX, ITEMS_MAX},
        testing::{Net, Sim, Wire, connect},
    },
};

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
struct User {
    name: String,
}

fn user(name: &str) -> User {
    let name = name.to_owned();
    User { name }
}

fn subscribe(sim: &Sim, client: &MeshClient) -> RecordSubscription<User> {
    sim.block_on(client.subscribe_record("r").into_future())
        .unwrap()
}

fn update(wire: &Wire, change: &str, version: u64) {
    let payload = format!(r#"{{"recordId":"r",{change},"version":{version}}}"#);
    wire.text(format!(
        r#"{{"command":"mesh/record-update","payload":{payload}}}"#
    ));
}

fn rename(name: &str) -> String {
    format!(r#"[{{"op":"replace","path":"/name","value":"{name}"}}]"#)
}

fn item<T>(
    change: RecordChange,
    version: u64,
    value: impl Into<Option<T>>,
    patch: Option<&str>,
) -> Option<Result<RecordUpdate<T>, EventError>> {
    Some(Ok(RecordUpdate {
        change,
        version,
        value: value.into(),
        patch: patch.map(Arc::from),
    }))
}

#[test]
fn a_record_is_followed_in_whole_typed_values() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let call = client.subscribe_record::<User>("r").patch();
    let mut record = sim.block_on(call.into_future()).unwrap();
    assert_eq!((record.record(), record.version()), ("r", 3));
    assert_eq!(record.value(), Some(&user("Ada")));
    let wire = net.wire(0);
    assert_eq!(
        wire.sent(),
        [r#"{"id":0,"command":"mesh/subscribe-record","payload":{"recordId":"r","mode":"patch"}}"#]
    );
    let patch = rename("Grace");
    update(&wire, &format!(r#""patch":{patch}"#), 4);
    update(&wire, r#""full":{"name":"Alan"}"#, 5);
    wire.text(r#"{"command":"mesh/record-deleted","payload":{"recordId":"r","version":6}}"#);
    update(&wire, r#""full":null"#, 0);
    for expected in [
        item(Updated, 4, user("Grace"), Some(&patch)),
        item(Updated, 5, user("Alan"), None),
        item(Deleted, 6, None, None),
        item(Reset, 0, None, None),
    ] {
        assert_eq!(sim.block_on(record.next()), expected);
    }
    assert_eq!(record.next().now_or_never(), None);
}

#[test]
fn a_value_that_does_not_fit_is_an_error_and_the_stream_goes_on() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let mut record = subscribe(&sim, &client);
    let wire = net.wire(0);
    update(&wire, r#""full":{"name":7}"#, 4);
    update(&wire, r#""full":{"name":"Alan"}"#, 5);
    let item_4 = sim.block_on(record.next());
    assert!(
        matches!(item_4, Some(Err(EventError::Decode(_)))),
        "{item_4:?}"
    );
    assert_eq!(
        sim.block_on(record.next()),
        item(Updated, 5, user("Alan"), None)
    );
    drop(record);
    sim.settle();

    // The first value of all is the call's result.
    let error = sim.block_on(client.subscribe_record::<u32>("r").into_future());
    assert!(matches!(error, Err(ClientError::Decode(_))), "{error:?}");
    sim.settle();
    let sent = wire.sent();
    assert!(sent[3].contains("mesh/unsubscribe-record"), "{sent:?}");
}

#[test]
fn a_slow_reader_is_given_the_latest_value_in_place_of_what_waits() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let call = client.subscribe_record::<User>("r").patch();
    let mut record = sim.block_on(call.into_future()).unwrap();
    let wire = net.wire(0);
    let many = ITEMS_MAX as u64 + 2;
    for n in 0..many {
        update(
            &wire,
            &format!(r#""patch":{}"#, rename(&format!("n{n}"))),
            4 + n,
        );
    }
    sim.settle();
    // All that had waited gave way; the patch of the first that did not makes nothing of what the reader has.
    let at = ITEMS_MAX as u64;
    let (patch, last) = (
        rename(&format!("n{}", at + 1)),
        user(&format!("n{}", at + 1)),
    );
    assert_eq!(
        sim.block_on(record.next()),
        item(Updated, 4 + at, user(&format!("n{at}")), None)
    );
    assert_eq!(
        sim.block_on(record.next()),
        item(Updated, 5 + at, last, Some(&patch))
    );
    assert_eq!(record.next().now_or_never(), None);

    // In bytes; and a reset among what gave way is told.
    update(&wire, r#""full":{"name":"one"}"#, 1);
    update(&wire, r#""full":{"name":"two"}"#, 2);
    let long = "x".repeat(BYTES_MAX);
    update(&wire, &format!(r#""full":{{"name":"{long}"}}"#), 3);
    sim.settle();
    assert_eq!(
        sim.block_on(record.next()),
        item(Reset, 3, user(&long), None)
    );
    update(&wire, &format!(r#""patch":{}"#, rename("short")), 4);
    assert_eq!(
        sim.block_on(record.next()),
        item(Updated, 4, user("short"), Some(&rename("short")))
    );
}

#[test]
fn a_record_goes_on_after_a_reconnect_and_with_it_everybody_who_holds_it() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let (mut first, mut second) = (subscribe(&sim, &client), subscribe(&sim, &client));
    assert_eq!(second.version(), 3);
    net.wire(0).cut();
    sim.settle();
    sim.block_on(async { client.command::<_, u32>("x", 1).await })
        .unwrap();
    let wire = net.wire(1);
    assert_eq!(wire.sent().len(), 2, "{:?}", wire.sent());
    assert!(wire.sent()[0].contains("mesh/subscribe-record"));
    update(&wire, r#""full":{"name":"Alan"}"#, 4);
    for record in [&mut first, &mut second] {
        assert_eq!(
            sim.block_on(record.next()),
            item(Updated, 4, user("Alan"), None)
        );
    }
}

#[test]
fn a_refused_record_is_an_error_and_a_closed_client_an_end() {
    let refusing = Net::answering(r#"{"success":false}"#);
    let (sim, client) = connect(&refusing);
    let error = sim.block_on(client.subscribe_record::<User>("r").into_future());
    assert_eq!(error.err(), Some(ClientError::NotExposed("r".into())));

    let net = Net::kind();
    let (sim, client) = connect(&net);
    let mut record = subscribe(&sim, &client);
    assert_eq!(record.end(), None);
    sim.block_on(client.close());
    assert_eq!(sim.block_on(record.next()), None);
    assert_eq!(record.end(), Some(SubscriptionEnd::Closed));
    assert_eq!(sim.block_on(record.unsubscribe()), Ok(()));

    sim.block_on(client.open()).unwrap();
    let mut record = subscribe(&sim, &client);
    drop(client);
    assert_eq!(sim.block_on(record.next()), None);
    assert_eq!(record.end(), Some(SubscriptionEnd::Closed));

    // The runtime goes.
    let (sim, client) = connect(&net);
    let mut record = subscribe(&sim, &client);
    sim.drop_tasks();
    assert_eq!(record.next().now_or_never(), Some(None));
    assert_eq!(record.end(), Some(SubscriptionEnd::Closed));
}

#[test]
fn a_record_that_is_refused_after_a_reconnect_ends() {
    let asked = AtomicU32::new(0);
    let net = Net::new(move |wire, text| {
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return wire.grant(text);
        }
        let id = parse(text, 64).unwrap().id.unwrap();
        wire.text(format!(
            r#"{{"id":{id},"command":"mesh/subscribe-record","payload":{{"success":false}}}}"#
        ));
    });
    let (sim, client) = connect(&net);
    let mut record = subscribe(&sim, &client);
    net.wire(0).cut();
    assert_eq!(sim.block_on(record.next()), None);
    let refused = ClientError::NotExposed("r".into());
    assert_eq!(record.end(), Some(SubscriptionEnd::Refused(refused)));
}

#[test]
fn nothing_comes_after_an_unsubscribe_which_waits_for_the_server() {
    let net = Net::new(|wire, text| {
        if !text.contains("unsubscribe") {
            wire.grant(text);
        }
    });
    let (sim, client) = connect(&net);
    let (first, second) = (subscribe(&sim, &client), subscribe(&sim, &client));
    let wire = net.wire(0);
    drop(first);
    sim.settle();
    assert_eq!(wire.sent().len(), 1, "the other one still needs it");
    update(&wire, r#""full":{"name":"Alan"}"#, 4);
    sim.settle();
    let buffer = Arc::clone(&second.buffer);
    let mut unsubscribe = Box::pin(second.unsubscribe());
    let waker = std::task::Waker::noop();
    let mut cx = std::task::Context::from_waker(waker);
    assert!(unsubscribe.as_mut().poll(&mut cx).is_pending());
    assert!(buffer.poll_next(&mut cx).is_ready(), "the end");
    assert_eq!(buffer.ended(), Some(SubscriptionEnd::Unsubscribed));
    sim.settle();
    update(&wire, r#""full":{"name":"Alan"}"#, 5);
    sim.settle();
    assert_eq!(client.stats().messages_unclaimed, 1);
    assert!(unsubscribe.as_mut().poll(&mut cx).is_pending());
    wire.grant(&wire.sent()[1]);
    assert_eq!(sim.block_on(unsubscribe), Ok(()));

    // A subscribe that nobody waits for any more.
    let mut subscribe = client.subscribe_record::<User>("s").into_future();
    assert!(subscribe.as_mut().poll(&mut cx).is_pending());
    sim.settle();
    drop(subscribe);
    sim.settle();
    let sent = wire.sent();
    assert!(sent[2].contains(r#"subscribe-record","payload":{"recordId":"s""#));
    assert!(sent[3].contains(r#"unsubscribe-record","payload":{"recordId":"s""#));
    assert_eq!(sent.len(), 4);
}

#[test]
fn any_json_is_a_value_and_null_is_none() {
    let net = Net::answering(r#"{"success":true,"record":null,"version":2}"#);
    let (sim, client) = connect(&net);
    let call = client.subscribe_record::<Value>("r");
    let mut record = sim.block_on(call.into_future()).unwrap();
    assert_eq!((record.value(), record.version()), (None, 2));
    update(&net.wire(0), r#""full":[1, null]"#, 3);
    update(&net.wire(0), r#""full":null"#, 4);
    let value = serde_json::json!([1, null]);
    assert_eq!(sim.block_on(record.next()), item(Updated, 3, value, None));
    assert_eq!(sim.block_on(record.next()), item(Updated, 4, None, None));
}
