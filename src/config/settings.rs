//! The settings of all commands that run tasks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::directories::{Directories, DirectoryArgs};
use super::{Problems, SWITCH, describe, present};
use crate::db::local_server::ServerDirectory;
use crate::env;
use crate::failure::{Class, Failure};
use crate::host_rules::{HostRules, SERVICE_DEFAULT};
use crate::pattern::ImagePolicy;
use crate::pod::connector::Runtime;
use crate::pod::kubernetes::client::{ClientSettings, Source};
use crate::pod::local::LocalSettings;
use crate::pod::manifest::{PodSettings, Resources};
use crate::secret::Secret;
use crate::task::{Image, LONGEST_TIMEOUT};

/// Where tasks run, where the database is, and how Pods are made.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings (each is also an environment variable)", mut_args(describe))]
pub struct SettingsArgs {
    #[arg(long, env = env::DATABASE_URL.name)]
    database_url: Option<String>,
    #[arg(long, env = env::SIDECAR_DATABASE_URL.name)]
    sidecar_database_url: Option<String>,
    #[arg(long, env = env::OWN_SCHEMA.name)]
    own_schema: Option<String>,
    #[arg(long, env = env::SIDECAR_IMAGE.name)]
    sidecar_image: Option<String>,
    #[arg(long, env = env::INIT_IMAGE.name)]
    init_image: Option<String>,
    #[arg(long, env = env::IMAGE_POLICY.name)]
    image_policy: Option<String>,
    #[arg(long, env = env::BULKER_URL.name)]
    bulker_url: Option<String>,
    #[arg(long, env = env::BULKER_AUTH_TOKEN.name)]
    bulker_auth_token: Option<String>,
    #[arg(long, env = env::DESTINATION_HOSTS.name)]
    destination_hosts: Option<String>,
    #[arg(long, env = env::KUBERNETES_CLIENT_CONFIG.name)]
    kubernetes_client_config: Option<String>,
    /// Kubeconfig file [default: what kubectl would use]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[arg(long, alias = "kubernetes-context", env = env::KUBERNETES_CONTEXT.name)]
    context: Option<String>,
    #[arg(long, alias = "kubernetes-namespace", env = env::KUBERNETES_NAMESPACE.name)]
    namespace: Option<String>,
    #[arg(long, env = env::KUBERNETES_NODE_SELECTOR.name)]
    kubernetes_node_selector: Option<String>,
    #[arg(long, env = env::PODS_SERVICE_ACCOUNT.name)]
    pods_service_account: Option<String>,
    #[arg(long, env = env::CONTAINER_STATUS_CHECK_SECONDS.name)]
    container_status_check_seconds: Option<String>,
    #[arg(long, env = env::CONTAINER_INIT_TIMEOUT_SECONDS.name)]
    container_init_timeout_seconds: Option<String>,
    #[arg(long, env = env::SILENCE_SECONDS.name)]
    silence_seconds: Option<String>,
    #[arg(long, env = env::CONTAINER_GRACE_SHUTDOWN_SECONDS.name)]
    container_grace_shutdown_seconds: Option<String>,
    #[arg(long, env = env::TASK_TIMEOUT_HOURS.name)]
    task_timeout_hours: Option<String>,
    #[arg(long, env = env::SOURCE_CPU_REQUEST_MILLICORES.name)]
    source_cpu_request_millicores: Option<String>,
    #[arg(long, env = env::SOURCE_CPU_LIMIT_MILLICORES.name)]
    source_cpu_limit_millicores: Option<String>,
    #[arg(long, env = env::SOURCE_MEMORY_REQUEST_MI.name)]
    source_memory_request_mi: Option<String>,
    #[arg(long, env = env::SOURCE_MEMORY_LIMIT_MI.name)]
    source_memory_limit_mi: Option<String>,
    #[arg(long, env = env::SIDECAR_CPU_REQUEST_MILLICORES.name)]
    sidecar_cpu_request_millicores: Option<String>,
    #[arg(long, env = env::SIDECAR_CPU_LIMIT_MILLICORES.name)]
    sidecar_cpu_limit_millicores: Option<String>,
    #[arg(long, env = env::SIDECAR_MEMORY_REQUEST_MI.name)]
    sidecar_memory_request_mi: Option<String>,
    #[arg(long, env = env::SIDECAR_MEMORY_LIMIT_MI.name)]
    sidecar_memory_limit_mi: Option<String>,
    #[arg(long, env = env::SOURCE_EPHEMERAL_STORAGE_LIMIT_MI.name)]
    source_ephemeral_storage_limit_mi: Option<String>,
    #[arg(long, env = env::SIDECAR_EPHEMERAL_STORAGE_LIMIT_MI.name)]
    sidecar_ephemeral_storage_limit_mi: Option<String>,
    #[arg(long, env = env::SOURCE_CAPABILITIES.name)]
    source_capabilities: Option<String>,
    #[arg(long, env = env::SOURCE_JAVA_OPTS.name, allow_hyphen_values = true)]
    source_java_opts: Option<String>,
    #[arg(long, env = env::LOG_LEVEL.name)]
    log_level: Option<String>,
    #[arg(long, env = env::DB_LOG_LEVEL.name)]
    db_log_level: Option<String>,
    /// Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local
    #[arg(long, help_heading = "Options")]
    local: bool,
    #[arg(long, env = env::ENGINE.name)]
    engine: Option<String>,
    #[arg(long, env = env::LOCAL_RUNTIME.name)]
    local_runtime: Option<String>,
    #[arg(long, env = env::CONTAINER_READ_ONLY.name)]
    container_read_only: Option<String>,
    #[command(flatten)]
    directories: DirectoryArgs,
}

/// The settings, typed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database of results as this process reaches it.
    pub database_url: Secret,
    /// Which connector images may run.
    pub image_policy: ImagePolicy,
    /// Default destination of rows.
    pub bulker: BulkerSettings,
    /// The hosts that destinations of callers may be at; `None`: any.
    pub destination_hosts: Option<Arc<HostRules>>,
    /// Where tasks run.
    pub engine: Engine,
    /// The embedded database, where it holds the results; its URL is known once it runs.
    pub embedded: Option<ServerDirectory>,
    /// Destination configuration of rows without a destination or a Bulker, as JSON.
    pub warehouse: Option<String>,
    /// Set where the sidecar has the image of this program, which only the cluster knows.
    pub own_image: Option<OwnImage>,
    /// How Pods are made.
    pub pod: PodSettings,
    /// How often Pods are listed, in addition to the watch.
    pub status_check: Duration,
    /// How long a task may take to start.
    pub init_timeout: Duration,
    /// How long a read may take.
    pub task_timeout: Duration,
}

/// The image of the Pod that this program runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnImage {
    /// The name of the Pod.
    pub pod: String,
    /// The foreign sidecar that cannot run without an init container.
    pub instead_of: Option<String>,
}

/// Where tasks run.
#[derive(Debug, Clone)]
pub enum Engine {
    /// In a cluster.
    Kubernetes(ClientSettings),
    /// On this machine.
    Local(LocalSettings),
}

/// A Bulker instance for reads without a destination.
#[derive(Debug, Clone, Default)]
pub struct BulkerSettings {
    /// An `http` or `https` URL.
    pub url: Option<String>,
    /// Sent to that URL alone.
    pub auth_token: Option<Secret>,
}

impl Settings {
    /// The schema for tables that other programs do not know.
    pub fn own_schema(&self) -> &str {
        // Pods use the same one.
        &self.pod.own_schema
    }

    /// Checks that the image of a connector may run. A command of `--exec` takes the place of any image.
    pub fn check_image(&self, image: &Image) -> Result<(), Failure> {
        match &self.engine {
            Engine::Local(LocalSettings { exec: Some(_), .. }) => Ok(()),
            _ => self.image_policy.check(image).map_err(|text| Failure::new(Class::Usage, text)),
        }
    }

    /// The same settings for a service, which takes destinations from callers of other machines.
    #[must_use]
    pub fn for_service(mut self) -> Self {
        let default = || SERVICE_DEFAULT.parse().ok().map(Arc::new);
        // A foreign sidecar checks no hosts.
        if self.pod.init_image.is_none() {
            self.destination_hosts = self.destination_hosts.or_else(default);
        }
        self
    }

    /// Logs what is allowed and should not be.
    pub fn log_warnings(&self) {
        let is_plain = self.bulker.url.as_ref().is_some_and(|url| url.starts_with("http://"));
        if is_plain && self.bulker.auth_token.is_some() {
            let (url, token) = (env::BULKER_URL.name, env::BULKER_AUTH_TOKEN.name);
            tracing::warn!("{url} is an http:// URL: {token} and all rows are sent in clear text; use https://");
        }
    }

    /// The same settings for a connector that is a command of this machine.
    pub fn with_exec(mut self, command: Option<String>) -> Result<Self, Failure> {
        match (&mut self.engine, command) {
            (_, None) => {}
            (Engine::Local(local), command) => local.exec = command,
            (Engine::Kubernetes(_), Some(_)) => {
                let text = "--exec runs a command of this machine, but the task would run in a cluster: add --local";
                return Err(Failure::new(Class::Usage, text));
            }
        }
        Ok(self)
    }
}

/// What a command needs its settings for: which of them are required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run tasks.
    RunTasks,
    /// To read and change what is stored of tasks, and to end them.
    ManageTasks,
}

impl SettingsArgs {
    /// Checks and types everything that running tasks needs, or reports all that is wrong.
    pub fn resolve(self) -> Result<Settings, Failure> {
        self.resolve_for(Purpose::RunTasks)
    }

    /// Checks and types everything that this purpose needs, or reports all that is wrong.
    pub fn resolve_for(self, purpose: Purpose) -> Result<Settings, Failure> {
        let mut problems = Problems::default();
        let engines = [("kubernetes", self.local), ("local", true)];
        let is_local = problems.choice(self.engine, &env::ENGINE, &engines);
        problems.is_local = is_local;
        let runtimes = [
            ("auto", Runtime::Auto),
            ("docker", Runtime::Docker),
            ("podman", Runtime::Podman),
            ("python", Runtime::Python),
        ];
        let runtime = problems.choice(self.local_runtime, &env::LOCAL_RUNTIME, &runtimes);
        let are_images_read_only = problems.choice(self.container_read_only, &env::CONTAINER_READ_ONLY, &SWITCH);
        let directories = is_local.then(|| self.directories.resolve()).transpose()?;
        // A local task uses the embedded database by default, and this program as its sidecar.
        let mut required = |value, variable, flag, example| {
            if is_local {
                present(value).unwrap_or_default()
            } else {
                problems.required(value, variable, flag, example)
            }
        };
        let example = "postgresql://user:pass@localhost:5432/postgres?sslmode=disable&search_path=bulker";
        let database_url = required(self.database_url, &env::DATABASE_URL, "--database-url", example);
        // A foreign sidecar is an image, which a local task does not use.
        let init_image = present(self.init_image).filter(|_| !is_local);
        let given = present(self.sidecar_image);
        let (sidecar_image, own_image) = match given {
            image if is_local || purpose == Purpose::ManageTasks => (image.unwrap_or_default(), None),
            image => problems.sidecar_image(image, init_image.is_some(), own_pod()),
        };
        // The sidecar of a local task reaches what this process reaches.
        let sidecar_database_url =
            present(self.sidecar_database_url).filter(|_| !is_local).unwrap_or_else(|| database_url.clone());
        let init_timeout = problems.seconds(self.container_init_timeout_seconds, &env::CONTAINER_INIT_TIMEOUT_SECONDS);
        let source = match (self.kubeconfig, present(self.kubernetes_client_config)) {
            (Some(path), _) => Source::Path(path),
            (None, Some(config)) => Source::parse(&config),
            (None, None) => Source::Kubectl,
        };
        let client = ClientSettings { source, context: present(self.context), namespace: present(self.namespace) };
        let embedded = directories.as_ref().filter(|_| database_url.is_empty()).map(Directories::database);
        let engine = match directories {
            Some(Directories { state, cache, .. }) => Engine::Local(LocalSettings {
                state,
                cache,
                exec: None,
                runtime,
                are_images_read_only,
                isolation: None,
            }),
            None => Engine::Kubernetes(client),
        };
        let settings = Settings {
            database_url: Secret::from(database_url),
            image_policy: problems.image_policy(self.image_policy),
            bulker: problems.bulker(self.bulker_url, self.bulker_auth_token),
            destination_hosts: problems.destination_hosts(self.destination_hosts, init_image.is_some()),
            engine,
            embedded,
            warehouse: None,
            own_image,
            status_check: problems.seconds(self.container_status_check_seconds, &env::CONTAINER_STATUS_CHECK_SECONDS),
            init_timeout,
            task_timeout: problems.task_timeout(self.task_timeout_hours),
            pod: PodSettings {
                sidecar_image,
                init_image,
                pull_secrets: Vec::new(),
                sidecar_database_url: Secret::from(sidecar_database_url),
                own_schema: problems.schema(self.own_schema),
                node_selector: problems.labels(self.kubernetes_node_selector),
                service_account: present(self.pods_service_account),
                grace_seconds: problems
                    .number(self.container_grace_shutdown_seconds, &env::CONTAINER_GRACE_SHUTDOWN_SECONDS),
                init_timeout_seconds: u32::try_from(init_timeout.as_secs()).unwrap_or(u32::MAX),
                silence_seconds: problems.at_least_one(self.silence_seconds, &env::SILENCE_SECONDS),
                source_resources: Resources {
                    cpu_request: problems
                        .number(self.source_cpu_request_millicores, &env::SOURCE_CPU_REQUEST_MILLICORES),
                    cpu_limit: problems.number(self.source_cpu_limit_millicores, &env::SOURCE_CPU_LIMIT_MILLICORES),
                    memory_request: problems.number(self.source_memory_request_mi, &env::SOURCE_MEMORY_REQUEST_MI),
                    memory_limit: problems.number(self.source_memory_limit_mi, &env::SOURCE_MEMORY_LIMIT_MI),
                    storage_limit: problems
                        .number(self.source_ephemeral_storage_limit_mi, &env::SOURCE_EPHEMERAL_STORAGE_LIMIT_MI),
                },
                sidecar_resources: Resources {
                    cpu_request: problems
                        .number(self.sidecar_cpu_request_millicores, &env::SIDECAR_CPU_REQUEST_MILLICORES),
                    cpu_limit: problems.number(self.sidecar_cpu_limit_millicores, &env::SIDECAR_CPU_LIMIT_MILLICORES),
                    memory_request: problems.number(self.sidecar_memory_request_mi, &env::SIDECAR_MEMORY_REQUEST_MI),
                    memory_limit: problems.number(self.sidecar_memory_limit_mi, &env::SIDECAR_MEMORY_LIMIT_MI),
                    storage_limit: problems
                        .number(self.sidecar_ephemeral_storage_limit_mi, &env::SIDECAR_EPHEMERAL_STORAGE_LIMIT_MI),
                },
                source_capabilities: capabilities(present(self.source_capabilities).as_deref().unwrap_or_default()),
                java_opts: present(self.source_java_opts).unwrap_or_else(|| env::SOURCE_JAVA_OPTS.default.to_owned()),
                log_level: problems.level(self.log_level, &env::LOG_LEVEL),
                db_log_level: problems.level(self.db_log_level, &env::DB_LOG_LEVEL),
            },
        };
        problems.into_result()?;
        Ok(settings)
    }
}

/// The name of the Pod that this program runs in, from the downward API or the host name. `None` outside of a Pod.
fn own_pod() -> Option<String> {
    let variable = |name| present(std::env::var(name).ok());
    variable("KUBERNETES_SERVICE_HOST")?;
    variable("POD_NAME").or_else(|| variable("HOSTNAME"))
}

/// Whether an image is the sidecar of the existing implementation, in whichever registry.
fn is_foreign_sidecar(image: &str) -> bool {
    const REPOSITORY: &str = "jitsucom/sidecar";
    let image = image.split('@').next().unwrap_or_default();
    // A colon before the last slash is that of a port.
    let path = match image.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path,
        _ => image,
    };
    path.strip_suffix(REPOSITORY).is_some_and(|registry| registry.is_empty() || registry.ends_with('/'))
}

impl Problems {
    /// The image of the sidecar, or that it is the one of this program.
    fn sidecar_image(
        &mut self,
        image: Option<String>,
        has_init_image: bool,
        own_pod: Option<String>,
    ) -> (String, Option<OwnImage>) {
        let is_foreign = !has_init_image && image.as_deref().is_some_and(is_foreign_sidecar);
        match (image, own_pod) {
            (Some(image), _) if !is_foreign => (image, None),
            (instead_of, Some(pod)) => (String::new(), Some(OwnImage { pod, instead_of })),
            (Some(image), None) => {
                self.malformed.push(format!(
                    "  {} is {image}, which needs {}: set that to an image with a shell such as alpine:3, or {} to an \
                     image of this program",
                    env::SIDECAR_IMAGE.name,
                    env::INIT_IMAGE.name,
                    env::SIDECAR_IMAGE.name
                ));
                (image, None)
            }
            (None, None) => (self.required(None, &env::SIDECAR_IMAGE, "--sidecar-image", "syncctl:0.1.0"), None),
        }
    }

    fn task_timeout(&mut self, hours: Option<String>) -> Duration {
        let hours = self.at_least_one(hours, &env::TASK_TIMEOUT_HOURS);
        let timeout = Duration::from_secs(u64::from(hours) * 3600);
        if timeout > LONGEST_TIMEOUT {
            self.malformed(&env::TASK_TIMEOUT_HOURS, hours, "no more than a Pod's deadline can hold");
        }
        timeout
    }

    fn image_policy(&mut self, value: Option<String>) -> ImagePolicy {
        let Some(text) = present(value) else { return ImagePolicy::default() };
        text.parse().unwrap_or_else(|error: String| {
            self.malformed.push(format!("  {}: {error}", env::IMAGE_POLICY.name));
            ImagePolicy::default()
        })
    }

    fn bulker(&mut self, url: Option<String>, token: Option<String>) -> BulkerSettings {
        let trimmed = |value: Option<String>| present(value).map(|value| value.trim().to_owned());
        let (url, token) = (trimmed(url), trimmed(token));
        // Not shown: it may hold a password.
        if url.as_deref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            self.malformed.push("  SYNCCTL_BULKER_URL is not a URL such as https://bulker.example.com".to_owned());
        }
        if url.is_none() && token.is_some() {
            let text = "  SYNCCTL_BULKER_AUTH_TOKEN is set without SYNCCTL_BULKER_URL: it is for that URL alone";
            self.malformed.push(text.to_owned());
        }
        BulkerSettings { url, auth_token: token.map(Secret::from) }
    }

    fn destination_hosts(&mut self, hosts: Option<String>, is_foreign: bool) -> Option<Arc<HostRules>> {
        let text = present(hosts)?;
        if is_foreign {
            let (hosts, image) = (env::DESTINATION_HOSTS.name, env::INIT_IMAGE.name);
            self.malformed.push(format!("  {hosts} is set, but the sidecar that {image} selects does not check hosts"));
        }
        let rules = text.parse().map_err(|error| {
            let expected = "hosts such as db.example.com, *.example.com:5432, 10.0.0.0/8";
            self.malformed(&env::DESTINATION_HOSTS, format_args!("{text:?}: {error}"), expected);
        });
        rules.ok().map(Arc::new)
    }

    /// The name of a schema. The server would cut a longer one, and refuses the prefix of its own schemas.
    fn schema(&mut self, name: Option<String>) -> String {
        let name = present(name).unwrap_or_else(|| env::OWN_SCHEMA.default.to_owned());
        if name.len() > 63 || name.starts_with("pg_") || name.contains('\0') {
            let expected = "the name of a schema, of 63 bytes at most and without the prefix pg_";
            self.malformed(&env::OWN_SCHEMA, format_args!("{name:?}"), expected);
        }
        name
    }

    fn level(&mut self, value: Option<String>, variable: &env::Variable) -> String {
        let level = present(value).unwrap_or_else(|| variable.default.to_owned()).to_ascii_uppercase();
        if !["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"].contains(&level.as_str()) {
            self.malformed(variable, format_args!("{level:?}"), "DEBUG, INFO, WARN or ERROR");
        }
        level
    }

    fn labels(&mut self, value: Option<String>) -> BTreeMap<String, String> {
        let Some(text) = present(value) else { return BTreeMap::new() };
        serde_json::from_str(&text).unwrap_or_else(|_| {
            let expected = r#"JSON such as {"disktype":"ssd"}"#;
            self.malformed(&env::KUBERNETES_NODE_SELECTOR, format_args!("{text:?}"), expected);
            BTreeMap::new()
        })
    }
}

/// Names as Kubernetes has them, without `CAP_`.
fn capabilities(list: &str) -> Vec<String> {
    let names = list.split(',').map(|name| name.trim().to_ascii_uppercase());
    names.map(|name| name.trim_start_matches("CAP_").to_owned()).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::{OwnImage, Problems, is_foreign_sidecar};

    #[test]
    fn a_foreign_sidecar_is_recognized_in_every_registry_and_version() {
        for (image, expected) in [
            ("jitsucom/sidecar", true),
            ("jitsucom/sidecar:2.8.1", true),
            ("docker.io/jitsucom/sidecar:latest", true),
            ("registry.example.com:5000/mirror/jitsucom/sidecar:beta", true),
            ("registry:5000/jitsucom/sidecar", true),
            ("jitsucom/sidecar@sha256:0a1b", true),
            ("jitsucom/sidecar:2.8.1@sha256:0a1b", true),
            ("notjitsucom/sidecar:1", false),
            ("jitsucom/sidecar-next:1", false),
            ("jitsucom/syncctl:1", false),
            ("syncctl:jitsucom", false),
            ("", false),
        ] {
            assert_eq!(is_foreign_sidecar(image), expected, "{image}");
        }
    }

    #[test]
    fn without_a_usable_image_the_sidecar_has_that_of_this_program() {
        const FOREIGN: &str = "jitsucom/sidecar:1";
        let own = |instead_of: Option<&str>| {
            let instead_of = instead_of.map(str::to_owned);
            (String::new(), Some(OwnImage { pod: "p".to_owned(), instead_of }))
        };
        let given = |image: &str| (image.to_owned(), None);
        for (image, has_init_image, in_pod, expected, problem) in [
            (Some("mine:1"), false, true, given("mine:1"), None),
            (Some("mine:1"), false, false, given("mine:1"), None),
            (None, false, true, own(None), None),
            (Some(FOREIGN), false, true, own(Some(FOREIGN)), None),
            (Some(FOREIGN), true, true, given(FOREIGN), None),
            (Some(FOREIGN), true, false, given(FOREIGN), None),
            (None, false, false, given(""), Some("SYNCCTL_SIDECAR_IMAGE (or --sidecar-image)")),
            (Some(FOREIGN), false, false, given(FOREIGN), Some("SYNCCTL_INIT_IMAGE")),
        ] {
            let mut problems = Problems::default();
            let own_pod = in_pod.then(|| "p".to_owned());
            let found = problems.sidecar_image(image.map(str::to_owned), has_init_image, own_pod);
            assert_eq!(found, expected, "{image:?} {in_pod}");
            let text = problems.into_result().err().map(|failure| failure.text);
            assert_eq!(text.is_some(), problem.is_some(), "{text:?}");
            assert!(text.unwrap_or_default().contains(problem.unwrap_or_default()), "{image:?} {in_pod}");
        }
    }
}
