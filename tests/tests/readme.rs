//! The quickstart of the README, run: that it compiles as it is written there, on tokio, the doc tests of this crate see to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use mesh_tests::assert_error;
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, block_on};
use serde_json::{Value, json};

use crate::common::{connect, patiently};

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Join {
    room_name: String,
}

/// The README's server, on a free port.
fn server() -> (MeshServer, String) {
    let server = runtime::build(MeshServer::builder());

    server.register_command("echo", async |ctx: Context<String>| {
        Ok(format!("echo: {}", ctx.payload))
    });

    server.register_command("join-room", async |ctx: Context<Join>| {
        let room = &ctx.payload.room_name;
        ctx.server.add_to_room(room, &ctx.connection).await?;
        ctx.server
            .broadcast_room(room, "user-joined", ctx.connection.id().as_str())
            .await?;
        Ok(true)
    });

    server.add_middleware(async |ctx| match ctx.command() {
        "admin" => Err(CommandError::new("Unauthorized")),
        _ => Ok(()),
    });

    server
        .expose_channel(Pattern::regex("^chat:.+$").unwrap())
        .guard(async |connection, channel| connection.is_open() && channel != "chat:secret");

    let url = format!("ws://{}", runtime::serve(&server));
    (server, url)
}

#[test]
fn the_quickstart_does_what_it_says() {
    block_on(async {
        let (server, url) = server();
        let publish = async |message: &str| {
            let published = server.publish_to_channel("chat:room1", message, 10).await;
            published.unwrap();
        };
        for message in ["1", "2", "3", "4"] {
            publish(message).await;
        }

        let client = connect(MeshClient::builder(&url)).await;
        let reply: String = client.command("echo", "hello").await.unwrap();
        assert_eq!(reply, "echo: hello");

        let mut chat = client.subscribe("chat:room1").history(3).await.unwrap();
        assert_eq!(chat.history(), ["4", "3", "2"]);
        publish("5").await;
        let event = patiently("an event", chat.next()).await;
        assert_eq!(event, Some(ChannelEvent::Message("5".to_owned())));

        let mut joined = client.on::<String>("user-joined");
        let room = json!({ "roomName": "lobby" });
        let reply: bool = client.command("join-room", room).await.unwrap();
        assert!(reply);
        let event = patiently("an event", joined.next()).await.unwrap();
        assert_eq!(event.ok(), client.connection_id());

        let secret = client.subscribe("chat:secret").await;
        assert!(matches!(secret, Err(ClientError::NotExposed(_))));

        // "A payload that does not fit its type is answered with `EINVALID` and the field."
        let unfit: Value = raw(&client, "join-room", json!({ "roomName": 7 })).await;
        let message = assert_error(&unfit, "EINVALID", "ValidationError");
        assert!(message.contains("roomName"), "{message}");
        let unauthorized: Value = raw(&client, "admin", json!({})).await;
        assert_eq!(
            assert_error(&unauthorized, "ESERVER", "Error"),
            "Unauthorized"
        );
    });
}

async fn raw(client: &MeshClient, command: &str, payload: Value) -> Value {
    let reply = client.command_raw(command, payload).await.unwrap();
    serde_json::from_str(&reply).unwrap()
}
