//! TLS by rustls, with the ring provider.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem, pem::PemObject},
    },
};

/// What a server shows to those who connect over TLS.
///
/// ```no_run
/// use mesh_tokio::ServerTls;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = ServerTls::from_pem(&std::fs::read("chain.pem")?, &std::fs::read("key.pem")?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// Takes a certificate chain, leaf first, and its private key (PKCS #8, PKCS #1 or SEC1), both as PEM.
    ///
    /// # Errors
    /// [`TlsError`] where one of them cannot be read, none is there, or key and certificate do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        // The front door speaks nothing else, so a browser that offers HTTP/2 as well is told.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self::from(Arc::new(config)))
    }

    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> std::io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        TlsAcceptor::from(Arc::clone(&self.config))
            .accept(stream)
            .await
    }
}

/// A configuration of the caller's own: client certificates, several names, another provider.
impl From<Arc<ServerConfig>> for ServerTls {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self { config }
    }
}

/// Whom a client trusts.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// The roots that Mozilla trusts, as `webpki-roots` lists them.
    ///
    /// # Errors
    /// [`TlsError`] where the provider has no protocol version to offer.
    pub fn webpki_roots() -> Result<Self, TlsError> {
        Self::with_roots(RootCertStore::from_iter(
            webpki_roots::TLS_SERVER_ROOTS.iter().cloned(),
        ))
    }

    /// The given certificates, as PEM, and no others: for an authority of one's own.
    ///
    /// # Errors
    /// [`TlsError`] where none is there, or one is no certificate.
    pub fn from_pem_roots(roots: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for root in certificates(roots)? {
            store.add(root)?;
        }
        Self::with_roots(store)
    }

    /// The given certificates, as DER, and no others.
    ///
    /// # Errors
    /// [`TlsError`] where one is no certificate.
    pub fn from_der_roots<D: AsRef<[u8]>>(
        roots: impl IntoIterator<Item = D>,
    ) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from(root.as_ref()).into_owned())?;
        }
        Self::with_roots(store)
    }

    fn with_roots(roots: RootCertStore) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::from(Arc::new(config)))
    }

    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> std::io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
    }
}

/// A configuration of the caller's own.
impl From<Arc<ClientConfig>> for ClientTls {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self { config }
    }
}

/// Why a TLS configuration cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// There is no certificate in the PEM text.
    #[error("the PEM text holds no certificate")]
    NoCertificate,
    /// The PEM text cannot be read, or holds no private key.
    #[error("the PEM text cannot be read: {0}")]
    Pem(#[from] pem::Error),
    /// What was read is no use to rustls.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(certificates)
}

/// Named, not taken from the process, so that two crates with different providers in one program do not clash.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
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
        let (near, far) = tokio::join!(client.connect("localhost", near), server.accept(far));
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
        for (client, host) in [
            (ClientTls::webpki_roots().unwrap(), "localhost"),
            (
                ClientTls::from_pem_roots(self_signed().0.as_bytes()).unwrap(),
                "localhost",
            ),
            (
                ClientTls::from_pem_roots(chain.as_bytes()).unwrap(),
                "example.org",
            ),
        ] {
            let (near, far) = tcp_pair().await;
            let (near, _far) = tokio::join!(client.connect(host, near), server.accept(far));
            assert!(near.is_err());
        }
    }

    #[test]
    fn what_is_no_pem_is_refused() {
        let (chain, key) = self_signed();
        let none = ServerTls::from_pem(b"", key.as_bytes());
        assert!(matches!(none, Err(TlsError::NoCertificate)));
        let none = ServerTls::from_pem(chain.as_bytes(), chain.as_bytes());
        assert!(matches!(none, Err(TlsError::Pem(_))));
        let (_, other) = self_signed();
        let mixed = ServerTls::from_pem(chain.as_bytes(), other.as_bytes());
        assert!(matches!(mixed, Err(TlsError::Rustls(_))));
        let none = ClientTls::from_pem_roots(key.as_bytes());
        assert!(matches!(none, Err(TlsError::NoCertificate)));
    }
}
