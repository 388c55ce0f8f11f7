//! The confidential documents of a task as the data of Secrets.
//!
//! A Secret holds at most 1 MiB, but there are catalogs of tens of megabytes: every document is compressed and, if still
//! too large for one Secret, split over several. The Pod sees one folder with all pieces.

use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// The documents do not fit into the Secrets of one Pod.
#[derive(Debug, thiserror::Error)]
#[error(
    "configuration, catalog and state take {} MiB compressed, and the Secrets of one Pod hold {} MiB",
    bytes.div_ceil(1024 * 1024),
    LIMIT / (1024 * 1024)
)]
pub struct TooLarge {
    /// Compressed size.
    bytes: usize,
}

/// The documents of a task, as JSON text. Deliberately without `Debug`.
#[derive(Clone, Default)]
pub struct Payload {
    /// The connector's configuration.
    pub config: Option<String>,
    /// The configured catalog of a read.
    pub catalog: Option<String>,
    /// The state of a read; absent when it starts from scratch.
    pub state: Option<String>,
    /// The destination's credentials, for the sidecar alone.
    pub destination_config: Option<String>,
    /// The rules for the hosts of a destination that a caller has chosen.
    pub destination_hosts: Option<String>,
    /// `FUNCTIONS_ENV` of a foreign sidecar, which may contain credentials; for the sidecar alone.
    pub functions_env: Option<String>,
}

/// Bytes of documents in one Secret. The API's limit is 1 MiB for all values; the rest is for the database URL.
const SECRET_BYTES: usize = 960 * 1024;
/// Secrets of one task. More would burden the kubelet's memory-backed volume and etcd.
const MAX_SECRETS: usize = 32;
/// The largest compressed size of all documents.
const LIMIT: usize = MAX_SECRETS * SECRET_BYTES;

impl Payload {
    /// The documents by the file names of the contract.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("config.json", &self.config),
            ("catalog.json", &self.catalog),
            ("state.json", &self.state),
            ("destinationConfig.json", &self.destination_config),
        ]
        .into_iter()
        .filter_map(|(name, document)| Some((name, document.as_deref()?)))
    }

    /// The data of each Secret: `config.json.gz.000`, …; at least one Secret, which may be empty.
    pub(super) fn pieces(&self) -> Result<Vec<BTreeMap<String, Vec<u8>>>, TooLarge> {
        let mut secrets = vec![BTreeMap::new()];
        let mut free = SECRET_BYTES;
        let mut total = 0;
        for (name, document) in self.files() {
            let compressed = gzip(document.as_bytes());
            total += compressed.len();
            let mut remaining = compressed.as_slice();
            for index in 0.. {
                if free == 0 {
                    secrets.push(BTreeMap::new());
                    free = SECRET_BYTES;
                }
                let (piece, others) = remaining.split_at(remaining.len().min(free));
                let last = secrets.last_mut().expect("it starts with one");
                last.insert(format!("{name}.gz.{index:03}"), piece.to_vec());
                free -= piece.len();
                remaining = others;
                if remaining.is_empty() {
                    break;
                }
            }
        }
        if secrets.len() > MAX_SECRETS {
            return Err(TooLarge { bytes: total });
        }
        Ok(secrets)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

#[cfg(test)]
mod tests {
    use super::{Payload, SECRET_BYTES};
    use flate2::read::MultiGzDecoder;
    use std::io::Read;

    /// Text that does not compress.
    fn noise(bytes: usize) -> String {
        let mut seed = 1_u64;
        std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b' ' + u8::try_from(seed >> 58).expect("six bits"))
        })
        .take(bytes)
        .collect()
    }

    #[test]
    fn a_large_document_is_split_without_loss() {
        let payload = Payload { config: Some("{}".to_owned()), catalog: Some(noise(4_000_000)), ..Payload::default() };
        let secrets = payload.pieces().expect("it fits");
        assert!(secrets.len() > 1);
        let mut pieces: Vec<_> = secrets.iter().flatten().filter(|(key, _)| key.starts_with("catalog")).collect();
        pieces.sort();
        let joined: Vec<u8> = pieces.into_iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let mut text = String::new();
        MultiGzDecoder::new(joined.as_slice()).read_to_string(&mut text).expect("gzip");
        assert_eq!(Some(text), payload.catalog);
        assert!(secrets.iter().all(|data| data.values().map(Vec::len).sum::<usize>() <= SECRET_BYTES));
    }

    #[test]
    fn a_payload_that_is_too_large_is_rejected_with_both_sizes() {
        let payload = Payload { catalog: Some(noise(60_000_000)), ..Payload::default() };
        assert!(payload.pieces().is_err_and(|error| error.to_string().contains("MiB")));
    }
}
