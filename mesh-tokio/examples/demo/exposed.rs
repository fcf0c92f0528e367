//! What clients may reach by themselves. Everything else answers as if it did not exist.

use crate::mesh::{PatternError, prelude::*};
use serde_json::Value;

pub(crate) fn expose(server: &MeshServer) -> Result<(), PatternError> {
    server.expose_channel("notifications:global");
    server.expose_channel(Pattern::regex("^chat:.+$")?);
    server
        .expose_channel(Pattern::regex("^private:chat:.+$")?)
        .guard(async |connection: Connection, _channel| is_set(&connection, "premium").await);

    server.expose_record("user:123");
    for open in ["^product:[0-9]+$", "^doc:.+$"] {
        server.expose_record(Pattern::regex(open)?);
    }
    server.expose_record(Pattern::regex("^private:.+$")?).guard(
        async |connection: Connection, _record| !metadata(&connection).await["userId"].is_null(),
    );
    server.expose_writable_record(Pattern::regex("^cursor:.+$")?);
    server
        .expose_writable_record(Pattern::regex("^profile:.+$")?)
        .guard(async |connection: Connection, record: String| {
            let metadata = metadata(&connection).await;
            let user_id = metadata["userId"].as_str().unwrap_or_default();
            !user_id.is_empty() && record.ends_with(user_id)
        });

    let rooms = Pattern::regex("^room:.+$")?;
    server.expose_room(rooms.clone());
    server.expose_room_metadata(rooms);
    server
        .expose_connection_metadata()
        .guard(async |connection: Connection, _of| is_set(&connection, "admin").await);
    Ok(())
}

/// Whether `key` is `true` in the connection's metadata.
async fn is_set(connection: &Connection, key: &str) -> bool {
    metadata(connection).await[key] == true
}

/// The connection's metadata, `null` where it has none. What cannot be read counts as none.
async fn metadata(connection: &Connection) -> Value {
    let metadata = connection.metadata().await;
    metadata.ok().flatten().unwrap_or_default()
}
