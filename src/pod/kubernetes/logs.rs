//! What the containers of a Pod have logged, and the content of its Secrets, which must not appear in it.

use std::collections::BTreeMap;

use kube::api::{LogParams, Patch, PatchParams};
use serde_json::json;

use super::client::Api;
use crate::pod::manifest::secret_name;
use crate::pod::{PodError, PodRef};

/// How much of a log is read.
const MAX_BYTES: i64 = 64 * 1024;

impl Api {
    /// The end of a container's log.
    pub(super) async fn last_lines(&self, pod: &str, container: &str, lines: u16) -> Result<String, PodError> {
        let params = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(lines.into()),
            limit_bytes: Some(MAX_BYTES),
            ..LogParams::default()
        };
        self.call(&format!("read the log of pod {pod}"), self.pods.logs(pod, &params)).await
    }

    /// The content of all Secrets of a Pod.
    pub(super) async fn secret_data(&self, pod: &PodRef) -> Result<BTreeMap<String, Vec<u8>>, PodError> {
        let mut data = BTreeMap::new();
        for index in 0..pod.secrets {
            let name = secret_name(&pod.name, index);
            let action = format!("read secret {name}");
            // As for metadata, a patch that changes nothing returns it.
            let unchanged = Patch::Merge(json!({}));
            let secret = match self.call(&action, self.secrets.patch(&name, &PatchParams::default(), &unchanged)).await
            {
                Err(PodError::Forbidden { .. }) => self.call(&action, self.secrets.get(&name)).await?,
                secret => secret?,
            };
            data.extend(secret.data.into_iter().flatten().map(|(key, content)| (key, content.0)));
        }
        Ok(data)
    }
}
