//! Whom a client trusts: rustls, with the ring provider.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use mesh_core::driver::tls::{TlsError, certificates, provider};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};

use crate::ConnectError;

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

    /// For the adapter that lays TLS over its streams.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }
}

/// A configuration of the caller's own.
impl From<Arc<ClientConfig>> for ClientTls {
    fn from(config: Arc<ClientConfig>) -> Self {
        Self { config }
    }
}

/// Whom a [`Connector`](super::Connector) trusts: made at the first use and kept, for with it goes the memory of TLS sessions that can be
/// resumed.
#[derive(Debug, Default)]
pub struct Trust(OnceLock<ClientTls>);

impl Trust {
    /// What was set, or made before; else `roots` (DER) and no others, or those that Mozilla trusts where there are none.
    ///
    /// # Errors
    /// [`ConnectError::InvalidRoot`] where one of `roots` is no certificate.
    pub fn get(&self, roots: &[Vec<u8>]) -> Result<&ClientTls, ConnectError> {
        if let Some(tls) = self.0.get() {
            return Ok(tls);
        }
        let tls = if roots.is_empty() {
            ClientTls::webpki_roots()
        } else {
            ClientTls::from_der_roots(roots)
        };
        let tls = tls.map_err(|error| ConnectError::InvalidRoot(error.to_string()))?;
        Ok(self.0.get_or_init(|| tls))
    }
}

/// A configuration that is there from the start; the roots of requests are not looked at.
impl From<ClientTls> for Trust {
    fn from(tls: ClientTls) -> Self {
        Self(tls.into())
    }
}

/// Whom the certificate of a server at `host`, a name or an address, has to name.
///
/// # Errors
/// [`ConnectError::Io`] where it is neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error).into())
}

/// Tells a handshake that TLS ended from a network that failed.
pub fn handshake_error(error: io::Error) -> ConnectError {
    match error.get_ref() {
        Some(cause) if cause.is::<rustls::Error>() => ConnectError::Tls(cause.to_string()),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::driver::tls::ServerTls;
    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    fn self_signed() -> (String, String) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (certified.cert.pem(), certified.signing_key.serialize_pem())
    }

    /// A handshake without a socket.
    fn shake(client: &ClientTls, host: &str, server: &ServerTls) -> Result<(), rustls::Error> {
        let name = server_name(host).unwrap();
        let mut near = ClientConnection::new(Arc::clone(client.config()), name)?;
        let mut far = ServerConnection::new(Arc::clone(server.config()))?;
        while near.is_handshaking() || far.is_handshaking() {
            let mut bytes = Vec::new();
            near.write_tls(&mut bytes).unwrap();
            far.read_tls(&mut &*bytes).unwrap();
            far.process_new_packets()?;
            bytes.clear();
            far.write_tls(&mut bytes).unwrap();
            near.read_tls(&mut &*bytes).unwrap();
            near.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn only_whom_it_was_told_to_trust() {
        let (chain, key) = self_signed();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let known = ClientTls::from_pem_roots(chain.as_bytes()).unwrap();
        assert_eq!(shake(&known, "localhost", &server), Ok(()));
        assert!(shake(&known, "example.org", &server).is_err());
        let (other, _) = self_signed();
        let other = ClientTls::from_pem_roots(other.as_bytes()).unwrap();
        assert!(shake(&other, "localhost", &server).is_err());
        let mozilla = ClientTls::webpki_roots().unwrap();
        assert!(shake(&mozilla, "localhost", &server).is_err());
    }

    #[test]
    fn trust_is_made_once_and_what_was_set_wins() {
        let (chain, key) = self_signed();
        let root = certificates(chain.as_bytes()).unwrap().remove(0).to_vec();
        let server = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let trust = Trust::default();
        let tls = trust.get(std::slice::from_ref(&root)).unwrap().clone();
        assert_eq!(shake(&tls, "localhost", &server), Ok(()));
        let again = trust.get(&[]).unwrap();
        assert!(Arc::ptr_eq(tls.config(), again.config()));

        let set = Trust::from(ClientTls::webpki_roots().unwrap());
        let tls = set.get(&[root]).unwrap();
        assert!(shake(tls, "localhost", &server).is_err());

        let broken = Trust::default();
        let error = broken.get(&[vec![1, 2, 3]]).unwrap_err();
        assert!(matches!(error, ConnectError::InvalidRoot(_)), "{error:?}");
    }

    #[test]
    fn an_error_of_tls_is_told_from_one_of_the_network() {
        let tls = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert!(matches!(handshake_error(tls), ConnectError::Tls(_)));
        let network = io::Error::from(io::ErrorKind::ConnectionReset);
        let error = handshake_error(network);
        assert!(matches!(
            error,
            ConnectError::Io {
                kind: io::ErrorKind::ConnectionReset,
                ..
            }
        ));
        let error = server_name("no name").unwrap_err();
        assert!(matches!(
            error,
            ConnectError::Io {
                kind: io::ErrorKind::InvalidInput,
                ..
            }
        ));
    }

    #[test]
    fn a_network_that_failed_is_no_fault_of_the_certificate() {
        let reset = || io::Error::new(io::ErrorKind::ConnectionReset, "reset");
        assert_eq!(handshake_error(reset()), ConnectError::from(reset()));
        let certificate = rustls::Error::NoCertificatesPresented;
        let words = certificate.to_string();
        assert_eq!(
            handshake_error(io::Error::new(io::ErrorKind::InvalidData, certificate)),
            ConnectError::Tls(words)
        );
    }
}
