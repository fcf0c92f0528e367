//! What clients may reach by themselves. Everything else answers as if it did not exist.

use mesh_tokio::{PatternError, prelude::*};
use serde_json::Value;

pub(crate) fn expose(server: &MeshServer) -> Result<(), PatternError> {
    server.expose_channel("notifications:global");
    server.expose_channel(Pattern::regex("^chat:.+$")?);
    server
        .expose_channel(Pattern::regex("^private:chat:.+$")?)
        .guard(async |connection: Connection, _channel| is_set(&connection, "premium").await);

    let rooms = Pattern::regex("^room:.+$")?;
    server.expose_room(rooms.clone());
    server.expose_room_metadata(rooms);
    server
        .expose_connection_metadata()
        .guard(async |connection: Connection, _of| is_set(&connection, "admin").await);
    Ok(())
}

/// Whether `key` is `true` in the connection's metadata. What cannot be read is no.
async fn is_set(connection: &Connection, key: &str) -> bool {
    let metadata = connection.metadata::<Value>().await;
    metadata.is_ok_and(|metadata| metadata.is_some_and(|metadata| metadata[key] == true))
}
