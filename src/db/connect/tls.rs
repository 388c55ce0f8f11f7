//! TLS to Postgres: what each `sslmode` verifies, and which certificates it trusts.
//!
//! Each target has its own configuration: the database of results and a destination share nothing.

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

/// How a connection is secured, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Without TLS.
    Disable,
    /// With TLS if the server offers it, without checking its certificate (`allow`, `prefer`).
    Prefer,
    /// With any certificate. As with libpq, like `verify-ca` where a root certificate is given.
    Require,
    /// With a certificate that a trusted root has signed.
    VerifyCa,
    /// With a certificate that a trusted root has signed and that names the host.
    VerifyFull,
}

impl SslMode {
    /// Parses a value of `sslmode`.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(format!(
                    "unknown sslmode {text:?}: expected disable, allow, prefer, require, verify-ca or verify-full"
                ));
            }
        })
    }
}

/// Certificates as PEM text or as paths of files.
#[derive(Default)]
pub(super) struct Certificates {
    /// Trusted roots, instead of those of the system.
    pub(super) server_ca: Option<String>,
    pub(super) client_cert: Option<String>,
    pub(super) client_key: Option<String>,
}

/// The connector for a mode; `None` without TLS. Errors name the certificate that is invalid.
pub(super) fn connector(
    mode: SslMode,
    certificates: &Certificates,
    direct: bool,
) -> Result<Option<MakeRustlsConnect>, String> {
    let provider = Arc::new(ring::default_provider());
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
            // Other errors are no proof: webpki cannot parse X.509 version 1, which openssl creates by default, and it
            // is the server that must accept it.
            if let Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
                return Err("the client certificate and the client key do not match".to_owned());
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

/// A longer text is not taken for a path and not quoted in an error.
const MAX_PATH_LENGTH: usize = 200;

fn read_pem(text: &str, what: &str) -> Result<Vec<u8>, String> {
    if text.contains("-----BEGIN") {
        return Ok(text.as_bytes().to_vec());
    }
    // A text that is no path may be a key without its header.
    if text.contains('\n') || text.len() > MAX_PATH_LENGTH {
        return Err(format!("the {what} is neither PEM text nor the path of a file"));
    }
    fs::read(text).map_err(|error| format!("cannot read the {what} {text:?}: {error}"))
}

fn read_key(text: &str, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(&read_pem(text, "client key")?)
        .map_err(|_| "the client key is not an unencrypted private key in PEM format".to_owned())?;
    provider.key_provider.load_private_key(key).map_err(|error| format!("the client key cannot be used: {error}"))
}

fn read_certificates(text: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(&read_pem(text, what)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("the {what} is not in PEM format"))?;
    if certificates.is_empty() { Err(format!("the {what} contains no certificate")) } else { Ok(certificates) }
}

/// Which server certificates are accepted.
#[derive(Debug)]
enum Trust {
    /// Every one: encryption without authentication, as libpq's `require`.
    Any,
    /// Those that a trusted root has signed.
    Roots {
        verifier: Arc<WebPkiServerVerifier>,
        /// Roots of the user. As with libpq, a server that presents one of them itself is trusted: self-signed
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
            // The container image has no system certificates, so roots are compiled in.
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
            // The name is checked last, so the rest is valid.
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
            // webpki cannot read the keys of X.509 version 1; and the signature of an unknown peer proves nothing.
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
