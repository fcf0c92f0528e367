//! Metadata documents: typed for the application, JSON text inside.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use super::{Connection, ConnectionRef, MeshServer, ServerError, server::Inner};
use crate::{
    backend::{BackendError, ConnectionId, Json, MetadataChange, Op, Reply},
    protocol::EncodeError,
    relay::Relay,
};

/// The connections of all instances and their metadata.
#[derive(Clone, Copy, Debug)]
pub struct Connections<'a> {
    pub(super) server: &'a MeshServer,
}

impl Connections<'_> {
    /// The handle of a connection of this instance.
    pub fn local(&self, connection: impl ConnectionRef) -> Option<Connection> {
        self.server.inner.local(&connection.connection_id())
    }

    /// The ids of all connections, all instances, in any order.
    ///
    /// # Errors
    /// The backend failed.
    pub async fn ids(&self) -> Result<Vec<ConnectionId>, ServerError> {
        match self.server.inner.ask(Op::Connections).await? {
            Reply::Connections(ids) => Ok(ids),
            _ => Ok(Vec::new()),
        }
    }

    /// The metadata of a connection, wherever it lives; `None` where it has none or does not exist.
    ///
    /// # Errors
    /// [`ServerError::Shape`] if it is not a `T`, or the backend failed.
    pub async fn metadata<T: DeserializeOwned>(
        &self,
        connection: impl ConnectionRef,
    ) -> Result<Option<T>, ServerError> {
        let id = connection.connection_id();
        typed(self.server.inner.metadata(&id).await?.as_ref())
    }

    /// Replaces the metadata of a connection, wherever it lives.
    ///
    /// # Errors
    /// [`ServerError`]: no JSON, too large, no such connection, or the backend failed.
    pub async fn set_metadata<T: Serialize + ?Sized>(
        &self,
        connection: impl ConnectionRef,
        value: &T,
    ) -> Result<(), ServerError> {
        let json = json(value, self.server.limits().metadata_bytes_max)?;
        let id = connection.connection_id();
        self.server
            .inner
            .change_metadata(&id, MetadataChange::Replace(json))
            .await
    }

    /// Merges keys into the metadata of a connection, one level deep and atomically.
    ///
    /// # Errors
    /// As [`set_metadata`](Self::set_metadata).
    pub async fn merge_metadata<T: Serialize + ?Sized>(
        &self,
        connection: impl ConnectionRef,
        value: &T,
    ) -> Result<(), ServerError> {
        let json = json(value, self.server.limits().metadata_bytes_max)?;
        let id = connection.connection_id();
        self.server
            .inner
            .change_metadata(&id, MetadataChange::Merge(json))
            .await
    }

    /// Every connection's metadata, all instances, in any order.
    ///
    /// # Errors
    /// [`ServerError::Shape`] if one is not a `T`, or the backend failed.
    pub async fn all_metadata<T: DeserializeOwned>(
        &self,
    ) -> Result<Vec<(ConnectionId, Option<T>)>, ServerError> {
        self.listed(Op::AllConnectionMetadata).await
    }

    /// The metadata of a room's members, all instances, in any order.
    ///
    /// # Errors
    /// As [`all_metadata`](Self::all_metadata); [`ServerError::Name`] for a name that no room can have.
    pub async fn room_members_metadata<T: DeserializeOwned>(
        &self,
        room: &str,
    ) -> Result<Vec<(ConnectionId, Option<T>)>, ServerError> {
        let room = self.server.inner.name("room", room)?;
        self.listed(Op::RoomMembersMetadata { room }).await
    }

    async fn listed<T: DeserializeOwned>(
        &self,
        op: Op,
    ) -> Result<Vec<(ConnectionId, Option<T>)>, ServerError> {
        let Reply::ConnectionsMetadata(all) = self.server.inner.ask(op).await? else {
            return Ok(Vec::new());
        };
        all.into_iter()
            .map(|(id, json)| Ok((id, typed(json.as_ref())?)))
            .collect()
    }
}

/// The rooms' metadata.
#[derive(Clone, Copy, Debug)]
pub struct Rooms<'a> {
    pub(super) server: &'a MeshServer,
}

impl Rooms<'_> {
    /// A room's metadata; `None` where it has none.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, the metadata is not a `T`, or the backend failed.
    pub async fn metadata<T: DeserializeOwned>(
        &self,
        room: &str,
    ) -> Result<Option<T>, ServerError> {
        let room = self.server.inner.name("room", room)?;
        match self.server.inner.ask(Op::RoomMetadata { room }).await? {
            Reply::Metadata(json) => typed(json.as_ref()),
            _ => Ok(None),
        }
    }

    /// Replaces a room's metadata.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, no JSON, too large, or the backend failed.
    pub async fn set_metadata<T: Serialize + ?Sized>(
        &self,
        room: &str,
        value: &T,
    ) -> Result<(), ServerError> {
        let json = json(value, self.server.limits().metadata_bytes_max)?;
        self.change(room, MetadataChange::Replace(json)).await
    }

    /// Merges keys into a room's metadata, one level deep and atomically.
    ///
    /// # Errors
    /// As [`set_metadata`](Self::set_metadata).
    pub async fn merge_metadata<T: Serialize + ?Sized>(
        &self,
        room: &str,
        value: &T,
    ) -> Result<(), ServerError> {
        let json = json(value, self.server.limits().metadata_bytes_max)?;
        self.change(room, MetadataChange::Merge(json)).await
    }

    /// Every room's metadata, by name.
    ///
    /// # Errors
    /// [`ServerError::Shape`] if one is not a `T`, or the backend failed.
    pub async fn all_metadata<T: DeserializeOwned>(
        &self,
    ) -> Result<BTreeMap<String, T>, ServerError> {
        let Reply::RoomsMetadata(all) = self.server.inner.ask(Op::AllRoomMetadata).await? else {
            return Ok(BTreeMap::new());
        };
        all.into_iter()
            .map(|(room, json)| {
                let value = serde_json::from_str(&json)
                    .map_err(|error| ServerError::Shape(error.to_string()))?;
                Ok((room.to_string(), value))
            })
            .collect()
    }

    async fn change(&self, room: &str, change: MetadataChange) -> Result<(), ServerError> {
        let room = self.server.inner.name("room", room)?;
        self.server
            .inner
            .ask(Op::SetRoomMetadata { room, change })
            .await
            .map(drop)
    }
}

impl Inner {
    /// The metadata of any connection.
    pub(super) async fn metadata(
        self: &Arc<Self>,
        id: &ConnectionId,
    ) -> Result<Option<Json>, ServerError> {
        if let Some(metadata) = self.local_metadata(id) {
            return Ok(metadata);
        }
        let connection = id.clone();
        match self.ask(Op::ConnectionMetadata { connection }).await? {
            Reply::Document(document) => Ok(document.json),
            _ => Ok(None),
        }
    }

    /// Changes the metadata of any connection.
    pub(super) async fn change_metadata(
        self: &Arc<Self>,
        id: &ConnectionId,
        change: MetadataChange,
    ) -> Result<(), ServerError> {
        if self.local(id).is_some() {
            self.request(id.as_str(), |shard, done| {
                shard.set_metadata(id, change, done);
            })
            .await?;
            return Ok(());
        }
        let connection = id.clone();
        let op = Op::SetConnectionMetadata { connection, change };
        let reply = self.ask(op).await?;
        let Some(owner) = self.elsewhere(id) else {
            return Err(ServerError::Gone);
        };
        let Reply::Changed(Some(document)) = reply else {
            return Err(if self.reach.is_fresh(self.runtime.now()) {
                let late = "the connection's instance may be yet to come back".to_owned();
                BackendError::Unavailable(late).into()
            } else {
                ServerError::Gone
            });
        };
        let connection = id.clone();
        let relay = Relay::MetadataChanged {
            connection,
            document,
        };
        self.tell(owner, relay).await
    }
}

/// Reads a stored document. One that is `null` is none.
pub(super) fn typed<T: DeserializeOwned>(stored: Option<&Json>) -> Result<Option<T>, ServerError> {
    stored
        .filter(|json| &***json != "null")
        .map(|json| {
            serde_json::from_str(json).map_err(|error| ServerError::Shape(error.to_string()))
        })
        .transpose()
}

/// Writes a document, within the limit.
pub(super) fn json<T: Serialize + ?Sized>(value: &T, max: usize) -> Result<Json, ServerError> {
    let json = serde_json::to_string(value).map_err(EncodeError::from)?;
    checked(json.into(), max)
}

/// Lets a document pass that is within the limit.
pub(super) fn checked(json: Json, max: usize) -> Result<Json, ServerError> {
    let len = json.len();
    if len > max {
        return Err(ServerError::MetadataTooLong { len, max });
    }
    Ok(json)
}
