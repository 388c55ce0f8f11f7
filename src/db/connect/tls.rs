//! TLS to Postgres: what each `sslmode` verifies, and which certificates it trusts.
//!
//! Each target has its own configuration: the database of results and a destination share nothing.

use std::borrow::Cow;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
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

/// Certificates as PEM text, or as paths of files, which only an operator may name.
#[derive(Default)]
pub(super) struct Certificates {
    /// Trusted roots, instead of those of the system.
    pub(super) server_ca: Option<String>,
    pub(super) client_cert: Option<String>,
    pub(super) client_key: Option<String>,
}

/// What errors call them.
const ROOT: &str = "root certificate";
const CLIENT: &str = "client certificate";
const KEY: &str = "client key";

impl Certificates {
    fn all(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let all = [(&self.server_ca, ROOT), (&self.client_cert, CLIENT), (&self.client_key, KEY)];
        all.into_iter().filter_map(|(text, what)| Some((text.as_deref()?, what)))
    }
}

/// The connector for a mode; `None` without TLS. Errors name the certificate that is invalid.
pub(super) fn connector(
    mode: SslMode,
    certificates: &Certificates,
    files: Files,
    direct: bool,
) -> Result<Option<MakeRustlsConnect>, String> {
    if files == Files::Refuse {
        // Also those that the mode does not use.
        certificates.all().try_for_each(|(text, what)| files.pem(text, what).map(drop))?;
    }
    let provider = Arc::new(ring::default_provider());
    let trust = match mode {
        SslMode::Disable => return Ok(None),
        SslMode::Require if certificates.server_ca.is_some() => Trust::roots(certificates, files, false, &provider)?,
        SslMode::Prefer | SslMode::Require => Trust::Any,
        SslMode::VerifyCa => Trust::roots(certificates, files, false, &provider)?,
        SslMode::VerifyFull => Trust::roots(certificates, files, true, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, provider: provider.clone() }));
    let mut config = match (&certificates.client_cert, &certificates.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(chain), Some(key)) => {
            let chain = read_certificates(chain, files, CLIENT)?;
            let key = read_key(key, files, &provider)?;
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

/// Who has given the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// An operator: a path names a file of this machine.
    Read,
    /// Any caller: a path is refused whatever is there, because the files of this machine may be another user's.
    Refuse,
}

impl Files {
    /// The PEM text of a certificate or key.
    fn pem<'a>(self, text: &'a str, what: &str) -> Result<Cow<'a, str>, String> {
        match self {
            _ if is_pem(text) => Ok(text.into()),
            Self::Read => read_pem_file(text, what).map(Into::into),
            Self::Refuse => {
                Err(format!("the {what} must be PEM text (-----BEGIN …): the path of a file is not accepted here"))
            }
        }
    }
}

/// A longer text is not taken for a path and not quoted in an error.
const MAX_PATH_LENGTH: usize = 200;
/// The largest file of certificates: the roots of a whole system are smaller.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Whether a text is PEM, and no path.
fn is_pem(text: &str) -> bool {
    text.contains("-----BEGIN")
}

/// Reads a file with PEM text whose path a user of this machine has given. Only a regular file of bounded size is read.
pub fn read_pem_file(path: &str, what: &str) -> Result<String, String> {
    // A text that is no path may be a key without its header.
    if path.contains('\n') || path.len() > MAX_PATH_LENGTH {
        return Err(format!("the {what} is neither PEM text nor the path of a file"));
    }
    let failed = |error: &dyn std::fmt::Display| format!("cannot read the {what} {path:?}: {error}");
    // Without blocking: a FIFO would wait for its other end.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(|error| failed(&error))?;
    if !file.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(failed(&"not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(&format_args!("larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    String::from_utf8(bytes).ok().filter(|text| is_pem(text)).ok_or_else(|| failed(&"not PEM text"))
}

fn read_key(text: &str, files: Files, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, String> {
    let key = PrivateKeyDer::from_pem_slice(files.pem(text, KEY)?.as_bytes())
        .map_err(|_| "the client key is not an unencrypted private key in PEM format".to_owned())?;
    provider.key_provider.load_private_key(key).map_err(|error| format!("the client key cannot be used: {error}"))
}

fn read_certificates(text: &str, files: Files, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(files.pem(text, what)?.as_bytes())
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
    fn roots(
        certificates: &Certificates,
        files: Files,
        check_name: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let given = match &certificates.server_ca {
            Some(ca) => read_certificates(ca, files, ROOT)?,
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
