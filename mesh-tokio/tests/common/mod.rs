//! A WebSocket client that is not mesh's own, and other things the tests share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::{future::Future, time::Duration};

use futures_util::{SinkExt, StreamExt};
use mesh_tokio::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message},
};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited too long: {what}"),
    }
}

/// Polls until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    patiently(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn server_with(handshake_time_max: Duration) -> MeshServer {
    MeshServer::builder()
        .limits(|limits| limits.handshake_time_max = handshake_time_max)
        .build()
}

pub(crate) struct Peer<S>(pub(crate) WebSocketStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) async fn open(io: S) -> Result<Self, Error> {
        let (socket, _) = patiently("the handshake", client_async("ws://localhost/", io)).await?;
        Ok(Self(socket))
    }

    /// The reply to one command that every server knows.
    pub(crate) async fn noop(&mut self, id: u32) -> String {
        let command = format!(r#"{{"id":{id},"command":"mesh/noop","payload":{{}}}}"#);
        self.send(&command).await;
        self.reply(id).await
    }

    pub(crate) async fn send(&mut self, frame: &str) {
        self.0.send(Message::text(frame)).await.unwrap();
    }

    pub(crate) async fn reply(&mut self, id: u32) -> String {
        loop {
            let message = patiently("a reply", self.0.next()).await.unwrap().unwrap();
            let text = message.into_text().unwrap();
            if text.contains(&format!(r#""id":{id},"#)) {
                return text.as_str().to_owned();
            }
        }
    }

    /// The code of the close frame that ends it.
    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        loop {
            match patiently("a close frame", self.0.next()).await {
                Some(Ok(Message::Close(close))) => return close.map(|close| close.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}
