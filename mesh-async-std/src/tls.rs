//! TLS over TCP of async-io, by rustls.

use std::{io, sync::Arc};

use futures_rustls::{TlsAcceptor, TlsConnector, client, server};
use mesh_client_core::driver::{
    ConnectError,
    tls::{ClientTls, handshake_error, server_name},
};
use mesh_core::driver::tls::ServerTls;

use crate::stream::Tcp;

/// The server's handshake.
pub(crate) async fn accept(tls: ServerTls, stream: Tcp) -> io::Result<server::TlsStream<Tcp>> {
    TlsAcceptor::from(Arc::clone(tls.config()))
        .accept(stream)
        .await
}

/// The client's handshake with the server of this name or address.
pub(crate) async fn connect(
    tls: &ClientTls,
    host: &str,
    stream: Tcp,
) -> Result<client::TlsStream<Tcp>, ConnectError> {
    TlsConnector::from(Arc::clone(tls.config()))
        .connect(server_name(host)?, stream)
        .await
        .map_err(handshake_error)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use async_io::{Async, block_on};
    use futures_util::{AsyncReadExt, AsyncWriteExt, future::join};

    use super::*;

    fn self_signed() -> (String, String) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (certified.cert.pem(), certified.signing_key.serialize_pem())
    }

    async fn tcp_pair() -> (Tcp, Tcp) {
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let address = listener.get_ref().local_addr().unwrap();
        let (near, far) = join(Async::<TcpStream>::connect(address), listener.accept()).await;
        (Tcp::new(near.unwrap()), Tcp::new(far.unwrap().0))
    }

    #[test]
    fn bytes_make_the_round_trip() {
        let (chain, key) = self_signed();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let client = ClientTls::from_pem_roots(chain.as_bytes()).unwrap();
        block_on(async {
            let (near, far) = tcp_pair().await;
            let (near, far) = join(connect(&client, "localhost", near), accept(server, far)).await;
            let (mut near, mut far) = (near.unwrap(), far.unwrap());

            near.write_all(b"hello").await.unwrap();
            near.flush().await.unwrap();
            let mut read = [0; 5];
            far.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hello");
            // The end of TLS ends the TCP stream as well.
            near.close().await.unwrap();
            assert_eq!(far.read(&mut read).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_stranger_is_not_trusted() {
        let (chain, key) = self_signed();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let client = ClientTls::webpki_roots().unwrap();
        block_on(async {
            let (near, far) = tcp_pair().await;
            let (near, _far) = join(connect(&client, "localhost", near), accept(server, far)).await;
            assert!(matches!(near, Err(ConnectError::Tls(_))));
        });
    }
}
