use std::{collections::BTreeMap, time::Duration};

use mesh_core::protocol::{Dialect, parse};

use crate::driver::{
    ClientError, MeshClient,
    testing::{Meets, Net, Sim, connect},
};

#[test]
fn records_are_published_in_three_ways() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let ada = BTreeMap::from([("name", "Ada")]);
    for call in [
        client.publish_record_update("r", &ada),
        client.merge_record("r", &ada),
        client.publish_record_update("r", &ada).merge(),
        client.merge_record("r", &ada).deep_merge(),
    ] {
        assert_eq!(sim.block_on(call.into_future()), Ok(()));
    }
    let sent = net.wire(0).sent();
    let payload = |text: &str| parse(text, 64).unwrap().payload.to_owned();
    let payloads: Vec<_> = sent.iter().map(|text| payload(text)).collect();
    let plain = r#"{"recordId":"r","newValue":{"name":"Ada"}"#;
    let with = |strategy: &str| format!(r#"{plain},"options":{{"strategy":"{strategy}"}}}}"#);
    assert_eq!(
        payloads,
        [
            format!("{plain}}}"),
            with("merge"),
            with("merge"),
            with("deepMerge")
        ]
    );
    assert!(sent[0].contains(r#""command":"mesh/publish-record-update""#));
}

#[test]
fn a_publish_has_the_outcomes_of_a_command() {
    let publish = |net: &Net| {
        let (sim, client) = connect(net);
        sim.block_on(client.publish_record_update("r", &7).into_future())
    };
    let error = r#"{"error":"Record \"r\" is not writable by this connection.","code":"ESERVER","name":"Error"}"#;
    let refused = publish(&Net::answering(error)).unwrap_err();
    assert_eq!(refused.code(), Some("ESERVER"));
    assert!(matches!(refused, ClientError::Command(_)));
    let gone = publish(&Net::answering(r#"{"success":false}"#));
    assert_eq!(gone, Err(ClientError::NotExposed("r".into())));
    assert!(matches!(
        publish(&Net::answering("7")),
        Err(ClientError::Decode(_))
    ));

    let mute = Net::new(|_, _| {});
    let (sim, client) = connect(&mute);
    let after = Duration::from_secs(2);
    let call = client.publish_record_update("r", &7).timeout(after);
    let outcome = sim.block_on(call.into_future());
    assert_eq!(outcome, Err(ClientError::Timeout { after, sent: true }));
    let pending = client.publish_record_update("r", &7).into_future();
    sim.settle();
    mute.wire(0).cut();
    assert_eq!(sim.block_on(pending), Err(ClientError::Disconnected));

    let unserialisable = BTreeMap::from([(vec![1], 1)]);
    let call = client.publish_record_update("r", &unserialisable);
    let outcome = sim.block_on(call.into_future());
    assert!(matches!(outcome, Err(ClientError::Encode(_))));

    mute.otherwise(Meets::Nothing);
    let sim = Sim::new();
    let builder = MeshClient::builder("ws://localhost:1");
    let client = builder.build_on(sim.runtime(), mute.connector()).unwrap();
    let call = client.publish_record_update("r", &7).fail_offline();
    let outcome = sim.block_on(call.into_future());
    assert_eq!(outcome, Err(ClientError::Offline));
}

#[test]
fn a_record_is_published_in_the_dialect_of_the_server() {
    let net = Net::new(|_, _| {});
    let sim = Sim::new();
    let client = sim
        .block_on(
            MeshClient::builder("ws://localhost:1")
                .dialect(Dialect::new("other/"))
                .connect_on(sim.runtime(), net.connector()),
        )
        .unwrap();
    let _call = client.publish_record_update("r", &1).into_future();
    sim.settle();
    assert!(net.wire(0).sent()[0].contains(r#""command":"other/publish-record-update""#));
}
