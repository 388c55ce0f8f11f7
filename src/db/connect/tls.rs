//! TLS to Postgres: what each `sslmode` verifies, and which certificates it trusts.
//!
//! Every connection has a configuration of its own: the database of results and a destination share nothing.

use std::fs;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Certificates, SslMode};

/// The connector for a mode; `None` when TLS is not to be used. The error says which certificate is not one.
pub(super) fn connector(
    mode: SslMode,
    certificates: &Certificates,
    direct: bool,
) -> Result<Option<MakeRustlsConnect>, String> {
    let provider = Arc::new(ring::default_provider());
    // libpq: with a root certificate at hand, `require` verifies the chain.
    let trust = match mode {
        SslMode::Disable => return Ok(None),
        SslMode::Require if certificates.server_ca.is_some() => Trust::roots(certificates, false, &provider)?,
        SslMode::Prefer | SslMode::Require => Trust::Any,
        SslMode::VerifyCa => Trust::roots(certificates, false, &provider)?,
        SslMode::VerifyFull => Trust::roots(certificates, true, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, provider: provider.clone() }));
    let mut config = match (&certificates.client_cert, &certificates.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(chain), Some(key)) => {
            let chain = read_certificates(chain, "client certificate")?;
            let key = read_key(key, &provider)?;
            let certified = CertifiedKey::new(chain, key);
            // Only a mismatch that was found is one: certificates of X.509 version 1, which openssl makes by default,
            // cannot be read by webpki, and it is the server that has to accept them.
            if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
                return Err("the client certificate does not belong to the client key".to_owned());
            }
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        _ => return Err("a client certificate needs both sslcert and sslkey".to_owned()),
    };
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Some(MakeRustlsConnect::new(config)))
}

/// A longer text is not taken for a path, and so not shown.
const LONGEST_PATH: usize = 200;

fn read_pem(text: &str, what: &str) -> Result<Vec<u8>, String> {
    if text.contains("-----BEGIN") {
        return Ok(text.as_bytes().to_vec());
    }
    // A text that is no path either may be a key that lost its header: not shown.
    if text.contains('\n') || text.len() > LONGEST_PATH {
        return Err(format!("the {what} is neither in PEM form nor the path of a file"));
    }
    fs::read(text).map_err(|error| format!("reading the {what} {text:?}: {error}"))
}

fn read_key(text: &str, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(&read_pem(text, "client key")?)
        .map_err(|_| "the client key is not an unencrypted private key in PEM form".to_owned())?;
    provider.key_provider.load_private_key(key).map_err(|error| format!("the client key cannot be used: {error}"))
}

fn read_certificates(text: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(&read_pem(text, what)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("the {what} is not in PEM form"))?;
    if certificates.is_empty() { Err(format!("the {what} holds no certificate")) } else { Ok(certificates) }
}

/// Which server certificates are accepted.
#[derive(Debug)]
enum Trust {
    /// Every one: encryption without authentication, which is what libpq's `require` means.
    Any,
    /// Those that a root vouches for.
    Roots {
        verifier: Arc<WebPkiServerVerifier>,
        /// Given by the user. A server that presents one of them itself is trusted, as by libpq: self-signed
        /// certificates are common, and webpki refuses a CA certificate as a server's.
        given: Vec<CertificateDer<'static>>,
        check_name: bool,
    },
}

impl Trust {
    fn roots(certificates: &Certificates, check_name: bool, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let given = match &certificates.server_ca {
            Some(ca) => read_certificates(ca, "root certificate")?,
            None => Vec::new(),
        };
        if given.is_empty() {
            // The program also runs from an image that holds nothing else, so roots are compiled in.
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        } else {
            for certificate in &given {
                store
                    .add(certificate.clone())
                    .map_err(|error| format!("the root certificate cannot be used: {error}"))?;
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()
            .map_err(|error| format!("the root certificates cannot be used: {error}"))?;
        Ok(Self::Roots { verifier, given, check_name })
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Roots { verifier, given, check_name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if given.iter().any(|root| root == end_entity) {
            if *check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked last, so everything else was in order.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !check_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.trust {
            // Any certificate also means those of X.509 version 1, whose keys webpki cannot read; and a signature of
            // an unknown peer proves nothing.
            Trust::Any => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => {
                verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
            }
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.trust {
            Trust::Any => Ok(HandshakeSignatureValid::assertion()),
            Trust::Roots { .. } => {
                verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
            }
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
