//! The connection to a namespace: where its configuration comes from, and how a call is made and its failure explained.
//!
//! The configuration is a kubeconfig by path or text, kubectl's own, or the Pod's service account. An explicit choice never
//! falls back to another one.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod, Secret};
use kube::api::ListParams;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use url::Url;

use super::features::Lacking;
use crate::pod::PodError;
use crate::pod::manifest::CREATOR_LABEL;

/// The deadline of a call, retries of the client included. Below the API server's own limit of a minute.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The deadline for connecting to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the client configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// What kubectl would use: `KUBECONFIG`, `~/.kube/config`, else the service account of the Pod it runs in.
    Kubectl,
    /// The service account of the Pod it runs in (`local` in `SYNCCTL_KUBERNETES_CLIENT_CONFIG`).
    InCluster,
    /// The text of a kubeconfig.
    Inline(String),
    /// The file of a kubeconfig.
    Path(PathBuf),
    /// The address of an API server that asks for no credentials, such as `kubectl proxy`.
    Address(String),
}

impl Source {
    /// Parses the value of `SYNCCTL_KUBERNETES_CLIENT_CONFIG`: `local`, YAML text (it has a newline), an
    /// http or https address, or a path.
    pub fn parse(text: &str) -> Self {
        match text {
            "local" => Self::InCluster,
            text if text.contains('\n') => Self::Inline(text.to_owned()),
            text if text.starts_with("http://") || text.starts_with("https://") => Self::Address(text.to_owned()),
            path => Self::Path(path.into()),
        }
    }
}

/// Which cluster, and which namespace in it.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Where the client configuration comes from.
    pub source: Source,
    /// The context of the kubeconfig; `None` is its current one.
    pub context: Option<String>,
    /// The namespace; `None` is the context's.
    pub namespace: Option<String>,
}

/// Must be called inside the runtime: the client spawns its worker there.
pub(super) async fn connect(settings: &ClientSettings) -> Result<Api, PodError> {
    let mut config = load(settings).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Watches may be silent for minutes; every other call has its own deadline.
    config.read_timeout = None;
    let server = config.cluster_url.to_string();
    let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let id = namespace_id(&config, &namespace);
    let client = Client::try_from(config).map_err(|error| PodError::Kubeconfig(error.to_string()))?;
    Ok(Api::new(client, namespace, server, id))
}

/// Distinguishes a namespace from those of other clusters, which may have the same address inside: by the cluster's CA.
fn namespace_id(config: &Config, namespace: &str) -> String {
    let mut hash = Sha256::new();
    match &config.root_cert {
        Some(certificates) => certificates.iter().for_each(|certificate| hash.update(certificate)),
        None => hash.update(config.cluster_url.to_string()),
    }
    hash.update([0]);
    hash.update(namespace);
    hex::encode(&hash.finalize()[..16])
}

async fn load(settings: &ClientSettings) -> Result<Config, PodError> {
    let bad = |what: &str, error: &dyn std::fmt::Display| PodError::Kubeconfig(format!("{what}: {error}"));
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    let kubeconfig = match &settings.source {
        Source::InCluster => {
            return Config::incluster().map_err(|error| bad("cannot use the service account of this Pod", &error));
        }
        Source::Address(address) => {
            let parsed = Url::parse(address).map_err(|error| error.to_string()).and_then(|url| {
                let is_plain = url.username().is_empty() && url.password().is_none() && url.has_host();
                let expected = "expected one such as http://127.0.0.1:8001";
                url.as_str().parse().ok().filter(|_| is_plain).ok_or_else(|| expected.to_owned())
            });
            return parsed.map(Config::new).map_err(|error| bad("cannot use the address of the API server", &error));
        }
        Source::Kubectl => match Kubeconfig::read() {
            Ok(kubeconfig) => kubeconfig,
            // In a Pod there is no kubeconfig; a broken one that KUBECONFIG names is an error.
            Err(error) if std::env::var_os("KUBECONFIG").is_none() => {
                return Config::incluster().map_err(|_| {
                    let error = format!("{error}; and this process does not run in a Pod");
                    bad("cannot read kubectl's configuration", &error)
                });
            }
            Err(error) => return Err(bad("cannot read the kubeconfig that KUBECONFIG names", &error)),
        },
        Source::Inline(text) => Kubeconfig::from_yaml(text)
            .map_err(|error| bad("cannot read the kubeconfig given as text", &first_line(&error)))?,
        Source::Path(path) => Kubeconfig::read_from(path)
            .map_err(|error| bad(&format!("cannot read the kubeconfig {}", path.display()), &first_line(&error)))?,
    };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| bad("cannot use the kubeconfig", &error))
}

/// The further lines of a parser's error may quote the kubeconfig, which contains keys.
fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The API of one namespace.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) pods: kube::Api<Pod>,
    /// For calls whose answers are many or large: read as [`PartialPod`].
    pub(super) pod_requests: Request,
    pub(super) secrets: kube::Api<Secret>,
    pub(super) leases: kube::Api<Lease>,
    pub(super) events: kube::Api<Event>,
    pub(super) namespace: String,
    /// An id of cluster and namespace.
    pub(super) id: String,
    pub(super) lacking: Lacking,
    server: String,
    /// Calls that failed for a reason other than the request itself.
    failed_calls: Arc<AtomicU64>,
}

impl Api {
    fn new(client: Client, namespace: String, server: String, id: String) -> Self {
        Self {
            pods: kube::Api::namespaced(client.clone(), &namespace),
            pod_requests: Request::new(Pod::url_path(&(), Some(&namespace))),
            secrets: kube::Api::namespaced(client.clone(), &namespace),
            leases: kube::Api::namespaced(client.clone(), &namespace),
            events: kube::Api::namespaced(client.clone(), &namespace),
            client,
            namespace,
            id,
            lacking: Lacking::default(),
            server,
            failed_calls: Arc::default(),
        }
    }

    /// One call with its deadline. `action` completes "cannot …" in the error.
    ///
    /// The client repeats a call after 429, 503 and 504 with growing pauses and not before `Retry-After`: the deadline
    /// covers all attempts together.
    pub(super) async fn call<T>(
        &self,
        action: &str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        self.call_within(action, CALL_TIMEOUT, call).await
    }

    /// One call with another deadline.
    pub(super) async fn call_within<T>(
        &self,
        action: &str,
        timeout: Duration,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PodError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.explain(action, &error)),
            Err(_) => Err(self.no_answer(action, timeout)),
        }
    }

    pub(super) fn failed_calls(&self) -> u64 {
        self.failed_calls.load(Ordering::Relaxed)
    }

    fn no_answer(&self, action: &str, timeout: Duration) -> PodError {
        self.unreachable(action, format!("no answer within {} s", timeout.as_secs_f64()))
    }

    fn unreachable(&self, action: &str, cause: String) -> PodError {
        self.failed_calls.fetch_add(1, Ordering::Relaxed);
        let action = format!("cannot {action} in namespace {}", self.namespace);
        PodError::Unreachable { action, server: self.server.clone(), cause }
    }

    pub(super) fn explain(&self, action: &str, error: &kube::Error) -> PodError {
        let in_namespace = || format!("cannot {action} in namespace {}", self.namespace);
        match error {
            // An exceeded quota is a 403 too, but not a missing permission.
            kube::Error::Api(status) if status.code == 403 && !status.message.contains("exceeded quota") => {
                PodError::Forbidden { action: in_namespace(), message: status.message.clone() }
            }
            kube::Error::Api(status) if status.code == 401 => PodError::Forbidden {
                action: in_namespace(),
                message: "the API server does not accept the credentials".to_owned(),
            },
            kube::Error::Api(status) if status.code >= 500 || status.code == 429 => {
                self.unreachable(action, status.message.clone())
            }
            kube::Error::Api(status) => PodError::Refused { action: in_namespace(), message: status.message.clone() },
            other => self.unreachable(action, root_cause(other)),
        }
    }

    /// Calls `each` for every object on all pages of a list. Returns the version of the list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        action: &str,
        requests: &Request,
        listing: Listing,
        mut each: impl FnMut(T),
    ) -> Result<u64, PodError> {
        let Listing { mut params, metadata_only, timeout } = listing;
        loop {
            let page = async {
                let request = if metadata_only { requests.list_metadata(&params) } else { requests.list(&params) };
                self.client.request::<Page<T>>(request.map_err(kube::Error::BuildRequest)?).await
            };
            let Page { metadata, items } = self.call_within(action, timeout, page).await?;
            items.into_iter().flatten().for_each(&mut each);
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(version(metadata.resource_version.as_deref())),
            }
        }
    }
}

/// What a list asks for.
pub(super) struct Listing {
    /// Selectors, and the size of a page.
    pub(super) params: ListParams,
    pub(super) metadata_only: bool,
    /// The deadline of each page.
    pub(super) timeout: Duration,
}

#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMetadata,
    /// `null` in the answers of older API servers when the list is empty.
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

/// A version as a number; 0, older than all others, if it is none.
pub(super) fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Selects what carries our label.
pub(super) fn labelled() -> ListParams {
    ListParams::default().labels(&format!("{}={}", CREATOR_LABEL.0, CREATOR_LABEL.1))
}

/// `None`: the object is not there, or (if the call names a uid or a version) is another one by now.
pub(super) async fn if_present<T>(
    call: impl Future<Output = kube::Result<T>>,
    conditional: bool,
) -> kube::Result<Option<T>> {
    match call.await {
        Ok(answer) => Ok(Some(answer)),
        Err(kube::Error::Api(status)) if status.code == 404 || (conditional && status.code == 409) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The innermost cause: "connection refused" is more useful than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// `None`: there is an object of this name.
pub(super) async fn if_absent<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<Option<T>> {
    match call.await {
        Ok(created) => Ok(Some(created)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, Source};

    #[test]
    fn the_setting_is_the_word_local_or_text_or_a_path() {
        assert_eq!(Source::parse("local"), Source::InCluster);
        assert_eq!(
            Source::parse("apiVersion: v1\nkind: Config"),
            Source::Inline("apiVersion: v1\nkind: Config".into())
        );
        for address in ["http://127.0.0.1:8001", "https://kubernetes.default.svc"] {
            assert_eq!(Source::parse(address), Source::Address(address.into()));
        }
        assert_eq!(Source::parse("https:\n"), Source::Inline("https:\n".into()));
        assert_eq!(Source::parse("/etc/kube.yaml"), Source::Path("/etc/kube.yaml".into()));
    }

    #[test]
    fn an_empty_page_may_lack_its_items() {
        for text in [r#"{"metadata":{},"items":null}"#, r#"{"metadata":{}}"#, r#"{"metadata":{},"items":[]}"#] {
            let page: Page<u32> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(page.items.is_none_or(|items| items.is_empty()), "{text}");
        }
    }
}
