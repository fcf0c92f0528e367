//! The commands of the demo, in the order of its documentation.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::mesh::{ConnectionId, prelude::*};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

type Reply<T> = Result<T, CommandError>;

/// `[{"<connectionId>": metadata | null}, …]`
type OfEach = Vec<BTreeMap<String, Option<Box<RawValue>>>>;

/// `{"success": true}`
#[derive(Serialize)]
struct Success {
    success: bool,
}
const SUCCESS: Success = Success { success: true };

/// `{"sent": true}`
#[derive(Serialize)]
struct Sent {
    sent: bool,
}
const SENT: Sent = Sent { sent: true };

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Room {
    room_name: String,
}

pub(crate) fn register(server: &MeshServer) {
    register_basics(server);
    register_rooms(server);
    register_broadcasts(server);
    register_metadata(server);
    register_channels(server);
    register_records(server);
    register_users(server);
}

fn register_basics(server: &MeshServer) {
    server.register_command("echo", async |ctx: Context| {
        let json = ctx.payload.json();
        match json.strip_prefix('"') {
            // The JSON of a string stays one with more text behind its first quote, and nothing is parsed.
            Some(rest) => Payload::from_json(&["\"echo: ", rest].concat()),
            None => Ok(Payload::new(&format!("echo: {json}"))?),
        }
    });

    server.register_command("reflect", async |ctx: Context| -> Reply<Payload> {
        Ok(ctx.payload)
    });

    server.register_command("this-command-throws", async |_: Context| -> Reply<()> {
        Err(CommandError::new("Something went wrong"))
    });

    #[derive(Deserialize)]
    struct Failure {
        message: String,
        code: String,
        name: String,
    }
    server.register_command("fails-with", async |ctx: Context<Failure>| -> Reply<()> {
        let Failure {
            message,
            code,
            name,
        } = ctx.payload;
        Err(CommandError::new(message).with_code(code).with_name(name))
    });

    server.register_command("never-responds", async |_: Context| -> Reply<()> {
        std::future::pending().await
    });

    #[derive(Deserialize)]
    struct Sleep {
        ms: u64,
    }
    #[derive(Serialize)]
    struct Slept {
        slept: u64,
    }
    server.register_command("sleep", async |ctx: Context<Sleep>| -> Reply<Slept> {
        crate::sleep(Duration::from_millis(ctx.payload.ms)).await;
        Ok(Slept {
            slept: ctx.payload.ms,
        })
    });

    server.register_command("panics", async |_: Context| -> Reply<()> {
        panic!("a handler of the demo panicked, as it was asked to");
    });

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Identity {
        connection_id: String,
        instance_id: String,
        remote_address: Option<SocketAddr>,
    }
    server.register_command("whoami", async |ctx: Context| -> Reply<Identity> {
        Ok(Identity {
            connection_id: ctx.connection.id().to_string(),
            instance_id: ctx.server.instance_id().to_string(),
            remote_address: ctx.connection.remote_addr(),
        })
    });
}

fn register_rooms(server: &MeshServer) {
    server.register_command("join-room", async |ctx: Context<Room>| -> Reply<Success> {
        let room = &ctx.payload.room_name;
        ctx.server.add_to_room(room, &ctx.connection).await?;
        let joined = json!({ "roomName": room, "id": ctx.connection.id().as_str() });
        ctx.server
            .broadcast_room(room, "user-joined", joined)
            .await?;
        Ok(SUCCESS)
    });

    server.register_command("leave-room", async |ctx: Context<Room>| -> Reply<Success> {
        ctx.server
            .remove_from_room(&ctx.payload.room_name, &ctx.connection)
            .await?;
        Ok(SUCCESS)
    });

    server.register_command("leave-all-rooms", async |ctx: Context| -> Reply<Success> {
        ctx.server.remove_from_all_rooms(&ctx.connection).await?;
        Ok(SUCCESS)
    });

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Member {
        room_name: String,
        connection_id: Option<String>,
    }
    server.register_command("is-in-room", async |ctx: Context<Member>| -> Reply<bool> {
        let room = &ctx.payload.room_name;
        Ok(match &ctx.payload.connection_id {
            Some(id) => ctx.server.is_in_room(room, id).await?,
            None => ctx.server.is_in_room(room, &ctx.connection).await?,
        })
    });

    server.register_command(
        "room-members",
        async |ctx: Context<Room>| -> Reply<Vec<String>> {
            let members = ctx.server.room_members(&ctx.payload.room_name).await?;
            Ok(members.iter().map(ToString::to_string).collect())
        },
    );

    server.register_command("clear-room", async |ctx: Context<Room>| -> Reply<Success> {
        ctx.server.clear_room(&ctx.payload.room_name).await?;
        Ok(SUCCESS)
    });
}

fn register_broadcasts(server: &MeshServer) {
    server.register_command("broadcast", async |ctx: Context| -> Reply<Sent> {
        ctx.server.broadcast("announcement", &ctx.payload).await?;
        Ok(SENT)
    });

    server.register_command("broadcast-exclude", async |ctx: Context| -> Reply<Sent> {
        ctx.server
            .broadcast_exclude("announcement", &ctx.payload, [&ctx.connection])
            .await?;
        Ok(SENT)
    });

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ToRoom {
        room_name: String,
        command: String,
        payload: Box<RawValue>,
    }
    server.register_command(
        "broadcast-room",
        async |ctx: Context<ToRoom>| -> Reply<Sent> {
            let ToRoom {
                room_name,
                command,
                payload,
            } = &ctx.payload;
            ctx.server
                .broadcast_room(room_name, command, payload)
                .await?;
            Ok(SENT)
        },
    );

    server.register_command(
        "broadcast-room-exclude",
        async |ctx: Context<ToRoom>| -> Reply<Sent> {
            let ToRoom {
                room_name,
                command,
                payload,
            } = &ctx.payload;
            ctx.server
                .broadcast_room_exclude(room_name, command, payload, [&ctx.connection])
                .await?;
            Ok(SENT)
        },
    );

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ToOne {
        connection_id: String,
        command: String,
        payload: Box<RawValue>,
    }
    server.register_command("send-to", async |ctx: Context<ToOne>| -> Reply<Sent> {
        let ToOne {
            connection_id,
            command,
            payload,
        } = &ctx.payload;
        ctx.server.send_to(connection_id, command, payload).await?;
        Ok(SENT)
    });
}

fn register_metadata(server: &MeshServer) {
    server.register_command("set-metadata", async |ctx: Context| -> Reply<Success> {
        let metadata: &RawValue = ctx.payload.decode()?;
        ctx.connection.set_metadata(metadata).await?;
        Ok(SUCCESS)
    });

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Connection {
        connection_id: String,
    }
    server.register_command(
        "get-metadata",
        async |ctx: Context<Connection>| -> Reply<Option<Box<RawValue>>> {
            Ok(ctx
                .server
                .connections()
                .metadata(&ctx.payload.connection_id)
                .await?)
        },
    );

    server.register_command("all-metadata", async |ctx: Context| -> Reply<OfEach> {
        let all = ctx.server.connections().all_metadata().await?;
        Ok(by_id(all))
    });

    server.register_command(
        "room-members-metadata",
        async |ctx: Context<Room>| -> Reply<OfEach> {
            let all = ctx
                .server
                .connections()
                .room_members_metadata(&ctx.payload.room_name)
                .await?;
            Ok(by_id(all))
        },
    );

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RoomMetadata {
        room_name: String,
        metadata: Box<RawValue>,
    }
    server.register_command(
        "set-room-metadata",
        async |ctx: Context<RoomMetadata>| -> Reply<Success> {
            let RoomMetadata {
                room_name,
                metadata,
            } = &ctx.payload;
            ctx.server.rooms().set_metadata(room_name, metadata).await?;
            Ok(SUCCESS)
        },
    );

    server.register_command(
        "update-room-metadata",
        async |ctx: Context<RoomMetadata>| -> Reply<Success> {
            let RoomMetadata {
                room_name,
                metadata,
            } = &ctx.payload;
            ctx.server
                .rooms()
                .merge_metadata(room_name, metadata)
                .await?;
            Ok(SUCCESS)
        },
    );

    server.register_command(
        "get-room-metadata",
        async |ctx: Context<Room>| -> Reply<Option<Box<RawValue>>> {
            Ok(ctx.server.rooms().metadata(&ctx.payload.room_name).await?)
        },
    );

    server.register_command(
        "all-room-metadata",
        async |ctx: Context| -> Reply<BTreeMap<String, Box<RawValue>>> {
            Ok(ctx
                .server
                .rooms()
                .all_metadata()
                .await?
                .into_iter()
                .collect())
        },
    );
}

fn by_id(all: Vec<(ConnectionId, Option<Box<RawValue>>)>) -> OfEach {
    let one = |(id, metadata): (ConnectionId, _)| BTreeMap::from([(id.to_string(), metadata)]);
    all.into_iter().map(one).collect()
}

fn register_channels(server: &MeshServer) {
    #[derive(Deserialize)]
    struct Publish {
        channel: String,
        message: String,
        #[serde(default)]
        history: usize,
    }
    server.register_command("publish", async |ctx: Context<Publish>| -> Reply<Success> {
        let Publish {
            channel,
            message,
            history,
        } = &ctx.payload;
        ctx.server
            .publish_to_channel(channel, message, *history)
            .await?;
        Ok(SUCCESS)
    });
}

fn register_records(server: &MeshServer) {
    // Values stay text: only the changed part of a large one is ever parsed.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Publish {
        record_id: String,
        value: Box<RawValue>,
    }
    #[derive(Serialize)]
    struct Published {
        success: bool,
        version: u64,
    }
    server.register_command(
        "publish-record",
        async |ctx: Context<Publish>| -> Reply<Published> {
            let Publish { record_id, value } = &ctx.payload;
            let version = ctx.server.publish_record_update(record_id, value).await?;
            Ok(Published {
                success: true,
                version,
            })
        },
    );

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        record_id: String,
    }
    #[derive(Serialize)]
    struct Stored {
        record: Option<Box<RawValue>>,
        version: u64,
    }
    server.register_command("get-record", async |ctx: Context<Named>| -> Reply<Stored> {
        let stored = ctx.server.get_record(&ctx.payload.record_id).await?;
        Ok(Stored {
            record: stored.value,
            version: stored.version,
        })
    });

    server.register_command(
        "delete-record",
        async |ctx: Context<Named>| -> Reply<Success> {
            ctx.server.delete_record(&ctx.payload.record_id).await?;
            Ok(SUCCESS)
        },
    );
}

/// What the middleware of `admin-only` hands to its handler.
#[derive(Serialize)]
struct User {
    id: Value,
}

fn register_users(server: &MeshServer) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Login {
        user_id: String,
    }
    server.register_command(
        "authenticate",
        async |ctx: Context<Login>| -> Reply<Success> {
            let user_id = &ctx.payload.user_id;
            let metadata = json!({ "userId": user_id, "token": format!("token-of-{user_id}") });
            ctx.server
                .connections()
                .set_metadata(&ctx.connection, &metadata)
                .await?;
            Ok(SUCCESS)
        },
    );

    server
        .register_command("admin-only", async |ctx: Context| -> Reply<Value> {
            let user = ctx.extension::<User>().ok_or_else(unauthorized)?;
            Ok(json!({ "user": *user }))
        })
        .middleware(async |ctx: Context| -> Reply<()> {
            let metadata = ctx
                .connection
                .metadata::<Value>()
                .await?
                .unwrap_or_default();
            let id = metadata.get("userId").cloned().ok_or_else(unauthorized)?;
            ctx.insert(User { id });
            Ok(())
        });

    server
        .register_command("update-profile", async |_: Context| -> Reply<Success> {
            Ok(SUCCESS)
        })
        .middleware(async |ctx: Context| -> Reply<()> {
            let profile: Value = ctx.payload.decode().unwrap_or_default();
            if profile["name"].as_str().is_none_or(str::is_empty) {
                return Err(CommandError::new("Invalid name"));
            }
            if !profile["email"]
                .as_str()
                .is_some_and(|email| email.contains('@'))
            {
                return Err(CommandError::new("Invalid email"));
            }
            Ok(())
        });
}

fn unauthorized() -> CommandError {
    CommandError::new("Unauthorized")
}
