//! A server like the demo whose rooms are joined without a word: the demo tells each join to all members, which for
//! 10 000 of them makes 50 million events that no test of a crowd wants to wait for.
//!
//! `quiet --port PORT --redis URL [anything else]`; it says where it listens as the demo does, and ends with a signal.

use std::env;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Room {
    room_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Broadcast {
    room_name: String,
    command: String,
    payload: Box<RawValue>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    Background::start().block_on(run())
}

async fn run() -> Result<()> {
    let args: Vec<String> = env::args().collect();
    let option = |name: &str| {
        let mut values = args.windows(2).filter(|pair| pair[0] == name);
        values.next().map(|pair| pair[1].clone())
    };
    let port: u16 = option("--port").ok_or("--port is needed")?.parse()?;
    let redis = mesh_redis::connect(option("--redis").ok_or("--redis is needed")?).await?;
    let server = runtime::build(MeshServer::builder().backend(redis));
    server.register_command("join-room", async |ctx: Context<Room>| {
        let room = &ctx.payload.room_name;
        ctx.server.add_to_room(room, &ctx.connection).await?;
        Ok(json!({ "success": true }))
    });
    server.register_command("broadcast-room", async |ctx: Context<Broadcast>| {
        let Broadcast {
            room_name,
            command,
            payload,
        } = &ctx.payload;
        ctx.server
            .broadcast_room(room_name, command, payload)
            .await?;
        Ok(json!({ "sent": true }))
    });
    server.register_command("room-members", async |ctx: Context<Room>| {
        let members = ctx.server.room_members(&ctx.payload.room_name).await?;
        let members: Vec<Value> = members.iter().map(|id| json!(id.as_str())).collect();
        Ok(members)
    });
    server.start().await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let line = format!("listening on ws://{}\n", listener.local_addr()?);
    std::io::stdout().write_all(line.as_bytes())?;
    runtime::serve_listener(&server, listener).await;
    Ok(())
}
