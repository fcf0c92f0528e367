//! What a server shows to those who connect over TLS: rustls, with the ring provider.
//!
//! Only what is the same on every runtime: the handshake itself is an adapter's.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

/// What a server shows to those who connect over TLS.
///
/// ```no_run
/// use mesh_core::driver::tls::ServerTls;
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

    /// For the adapter that lays TLS over its streams.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

/// A configuration of the caller's own: client certificates, several names, another provider.
impl From<Arc<ServerConfig>> for ServerTls {
    fn from(config: Arc<ServerConfig>) -> Self {
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

/// The certificates in a PEM text, at least one.
///
/// # Errors
/// [`TlsError::NoCertificate`], or [`TlsError::Pem`] where one cannot be read.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(certificates)
}

/// The cryptography that mesh uses. Named, not taken from the process, so that two crates with different providers in one program do not
/// clash.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn self_signed() -> (String, String) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (certified.cert.pem(), certified.signing_key.serialize_pem())
    }

    #[test]
    fn a_chain_and_its_key_make_a_configuration_that_speaks_http_1_1() {
        let (chain, key) = self_signed();
        let tls = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(tls.config().alpn_protocols, [b"http/1.1"]);
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
        assert!(matches!(
            certificates(key.as_bytes()),
            Err(TlsError::NoCertificate)
        ));
    }
}
