//! Finding the cluster: a kubeconfig by path or text, kubectl's own, or the Pod's service account.
//!
//! A choice that was made explicitly never falls back to another one silently.

use std::path::PathBuf;
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::pod::PodError;

/// How long connecting to the API server may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where the client configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// What kubectl would use: `KUBECONFIG`, `~/.kube/config`, else the service account of the Pod it runs in.
    Kubectl,
    /// The service account of the Pod it runs in (`local` in `SYNCCTL_KUBERNETES_CLIENT_CONFIG`).
    InCluster,
    /// The kubeconfig itself.
    Inline(String),
    /// A file that holds it.
    Path(PathBuf),
}

impl Source {
    /// Reads the value of `SYNCCTL_KUBERNETES_CLIENT_CONFIG`: `local`, YAML text (it has a newline), or a path.
    pub fn parse(text: &str) -> Self {
        match text {
            "local" => Self::InCluster,
            text if text.contains('\n') => Self::Inline(text.to_owned()),
            path => Self::Path(path.into()),
        }
    }
}

/// Which cluster, and what in it.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Where the client configuration comes from.
    pub source: Source,
    /// The context of the kubeconfig; `None` is its current one.
    pub context: Option<String>,
    /// The namespace; `None` is the context's.
    pub namespace: Option<String>,
}

/// Builds the client. Must be called inside the runtime: the client spawns its worker there.
pub(super) async fn connect(settings: &ClientSettings) -> Result<(Client, String, String), PodError> {
    let mut config = load(settings).await?;
    config.connect_timeout = Some(CONNECT);
    // Watches are silent for minutes; every other call has a deadline of its own.
    config.read_timeout = None;
    let server = config.cluster_url.to_string();
    let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| PodError::Kubeconfig(error.to_string()))?;
    Ok((client, namespace, server))
}

async fn load(settings: &ClientSettings) -> Result<Config, PodError> {
    let bad = |what: &str, error: &dyn std::fmt::Display| PodError::Kubeconfig(format!("{what}: {error}"));
    let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
    let kubeconfig = match &settings.source {
        Source::InCluster => {
            return Config::incluster().map_err(|error| bad("using the service account of this Pod", &error));
        }
        Source::Kubectl => match Kubeconfig::read() {
            Ok(kubeconfig) => kubeconfig,
            // No kubeconfig at all is what a Pod looks like; one that was named in KUBECONFIG and is bad is an error.
            Err(error) if std::env::var_os("KUBECONFIG").is_none() => {
                return Config::incluster().map_err(|_| {
                    let error = format!("{error}; nor does this run in a Pod");
                    bad("reading kubectl's configuration", &error)
                });
            }
            Err(error) => return Err(bad("reading the kubeconfig that KUBECONFIG names", &error)),
        },
        Source::Inline(text) => Kubeconfig::from_yaml(text)
            .map_err(|error| bad("reading the kubeconfig given as text", &shortened(&error)))?,
        Source::Path(path) => Kubeconfig::read_from(path)
            .map_err(|error| bad(&format!("reading the kubeconfig {}", path.display()), &shortened(&error)))?,
    };
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| bad("using the kubeconfig", &error))
}

/// A parser's error may quote the text around the fault, and that text holds keys: only its first line is kept.
fn shortened(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Source;

    #[test]
    fn the_setting_is_local_or_text_or_a_path() {
        assert_eq!(Source::parse("local"), Source::InCluster);
        assert_eq!(
            Source::parse("apiVersion: v1\nkind: Config"),
            Source::Inline("apiVersion: v1\nkind: Config".into())
        );
        assert_eq!(Source::parse("/etc/kube.yaml"), Source::Path("/etc/kube.yaml".into()));
    }
}
