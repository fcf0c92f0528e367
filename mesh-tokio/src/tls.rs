//! TLS over tokio's TCP, by rustls.

use std::{io, sync::Arc};

use mesh_client_core::driver::{
    ConnectError,
    tls::{ClientTls, handshake_error, server_name},
};
use mesh_core::driver::tls::ServerTls;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The server's handshake.
pub(crate) async fn accept(
    tls: ServerTls,
    stream: TcpStream,
) -> io::Result<server::TlsStream<TcpStream>> {
    TlsAcceptor::from(Arc::clone(tls.config()))
        .accept(stream)
        .await
}

/// The client's handshake with the server of this name or address.
pub(crate) async fn connect(
    tls: &ClientTls,
    host: &str,
    stream: TcpStream,
) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    TlsConnector::from(Arc::clone(tls.config()))
        .connect(server_name(host)?, stream)
        .await
        .map_err(handshake_error)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn self_signed() -> (String, String) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (certified.cert.pem(), certified.signing_key.serialize_pem())
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_make_the_round_trip() {
        let (chain, key) = self_signed();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let client = ClientTls::from_pem_roots(chain.as_bytes()).unwrap();
        let (near, far) = tcp_pair().await;
        let (near, far) = tokio::join!(connect(&client, "localhost", near), accept(server, far));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());

        near.write_all(b"hello").await.unwrap();
        near.flush().await.unwrap();
        let mut read = [0; 5];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }

    #[tokio::test]
    async fn a_stranger_is_not_trusted() {
        let (chain, key) = self_signed();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let client = ClientTls::webpki_roots().unwrap();
        let (near, far) = tcp_pair().await;
        let (near, _far) = tokio::join!(connect(&client, "localhost", near), accept(server, far));
        assert!(matches!(near, Err(ConnectError::Tls(_))));
    }
}
