//! TLS of the service: its certificate and key, and the roots of client certificates, read again when their files change.
//!
//! Connections are secured by the [guard](super::guard). Errors name files and never quote them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::{Mode, OFlags};
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::config::TlsFiles;
use crate::failure::{Class, Failure};

/// A certificate chain has some KiB, a list of roots some hundred.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The digest of what the files contain, or why they cannot be read.
type Seen = Result<[u8; 32], String>;

/// The configuration of new connections.
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
    seen: Mutex<Seen>,
}

/// The content of the files.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads and checks the files.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, Failure> {
        let loaded = Contents::read(&files).and_then(|contents| Ok((contents.digest(), contents.config(&files)?)));
        let (digest, config) = loaded.map_err(|error| {
            Failure::new(Class::Usage, format!("cannot serve TLS: {error}"))
                .with_hint("check the files of SYNCCTL_TLS_CERT, SYNCCTL_TLS_KEY and SYNCCTL_TLS_CLIENT_CA")
        })?;
        Ok(Arc::new(Self { files, config: RwLock::new(config), seen: Mutex::new(Ok(digest)) }))
    }

    /// The configuration for a new connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again. What cannot be used is logged once, and the configuration stays.
    pub fn reload(&self) {
        let contents = Contents::read(&self.files);
        let found = contents.as_ref().map(Contents::digest).map_err(String::clone);
        if std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), found.clone()) == found {
            return;
        }
        match contents.and_then(|contents| contents.config(&self.files)) {
            Ok(config) => {
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("using the renewed TLS certificate for new connections");
            }
            Err(error) => {
                tracing::warn!(error, "cannot use the changed TLS files; the previous certificate stays in use");
            }
        }
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, String> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten() {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(roots), Some(path)) => {
                let mut store = RootCertStore::empty();
                let roots = certificates(roots, path)?;
                let path = path.display();
                for root in roots {
                    store.add(root).map_err(|error| format!("{path} has an unusable certificate: {error}"))?;
                }
                // The kubelet has no certificate for its probes: the service decides for each endpoint.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
                    .allow_unauthenticated()
                    .build();
                builder.with_client_cert_verifier(verifier.map_err(|error| format!("{path} is unusable: {error}"))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let chain = certificates(&self.certificate, &files.certificate)?;
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| format!("{key} has no unencrypted private key in PEM format"))?;
        let mut config = builder.with_single_cert(chain, private).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("the certificate in {certificate} and the key in {key} do not match")
            }
            error => format!("the certificate in {certificate} or the key in {key} is unusable: {error}"),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let path = path.display();
    let certificates = certificates.map_err(|_| format!("{path} is not in PEM format"))?;
    if certificates.is_empty() { Err(format!("{path} has no certificate in PEM format")) } else { Ok(certificates) }
}

/// Reads a regular file. Links are followed: Kubernetes replaces a mounted Secret through one.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        // Opening a FIFO would block.
        let file =
            File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES { Err(io::Error::other("larger than 1 MiB")) } else { Ok(bytes) }
    };
    read().map_err(|error| format!("cannot read {}: {error}", path.display()))
}
