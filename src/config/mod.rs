//! Settings: flag > environment > default, resolved once into types. The `SYNCCTL_` names live here.
//!
//! Every value arrives as text, so that an empty variable counts as absent (manifests often carry such) and all that is
//! missing or malformed is reported at once. Nothing else in the program reads the environment, but for the sidecar's
//! own contract (and what the keeper of the embedded database passes on without looking at it).

mod engine;
mod places;
mod serve;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::db::local_server::ServerDirectory;
use crate::failure::{Class, Failure};
use crate::pod::kubernetes::client::{ClientSettings, Source};
use crate::pod::local::LocalSettings;
use crate::pod::manifest::{PodSettings, Resources};
use crate::secret::Secret;
use crate::task::{DEFAULT_INIT_TIMEOUT_SECONDS, DEFAULT_SILENCE_SECONDS, DEFAULT_TIMEOUT_HOURS, LONGEST_TIMEOUT};

pub use engine::EngineArgs;
pub use places::PlacesArgs;
pub use serve::{ServeSettings, ServeSettingsArgs};

/// Where tasks run, where the database is, and how Pods are made.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings (each is also an environment variable)")]
pub struct SettingsArgs {
    /// Postgres database of results, logs and states; give it in the environment, where other users do not see it [default
    /// with --local: an embedded one, see `syncctl db`]
    #[arg(long, env = "SYNCCTL_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// The same database as Pods reach it [default: the database URL]
    #[arg(long, env = "SYNCCTL_SIDECAR_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    sidecar_database_url: Option<String>,
    /// Image with the sidecar, e.g. the one that `syncctl image` writes
    #[arg(long, env = "SYNCCTL_SIDECAR_IMAGE", value_name = "IMAGE")]
    sidecar_image: Option<String>,
    /// Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar
    #[arg(long, env = "SYNCCTL_INIT_IMAGE", value_name = "IMAGE")]
    init_image: Option<String>,
    /// Bulker instance that takes the rows of reads which name no destination
    #[arg(long, env = "SYNCCTL_BULKER_URL", hide_env_values = true, value_name = "URL")]
    bulker_url: Option<String>,
    /// Token for that Bulker instance; give it in the environment, where other users do not see it
    #[arg(long, env = "SYNCCTL_BULKER_AUTH_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    bulker_auth_token: Option<String>,
    /// Kubeconfig: a path, its YAML text, or `local` for the service account of this Pod
    #[arg(long, env = "SYNCCTL_KUBERNETES_CLIENT_CONFIG", hide_env_values = true, value_name = "CONFIG")]
    kubernetes_client_config: Option<String>,
    /// Kubeconfig file [default: what kubectl would use]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, alias = "kubernetes-context", env = "SYNCCTL_KUBERNETES_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the tasks' Pods [default: the context's, else default]
    #[arg(long, alias = "kubernetes-namespace", env = "SYNCCTL_KUBERNETES_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Nodes for the Pods, as a JSON object of labels
    #[arg(long, env = "SYNCCTL_KUBERNETES_NODE_SELECTOR", value_name = "JSON")]
    kubernetes_node_selector: Option<String>,
    /// Service account of the Pods; its token is not mounted
    #[arg(long, env = "SYNCCTL_PODS_SERVICE_ACCOUNT", value_name = "NAME")]
    pods_service_account: Option<String>,
    /// How often Pods are listed, besides the watch [default: 10]
    #[arg(long, env = "SYNCCTL_CONTAINER_STATUS_CHECK_SECONDS", value_name = "SECONDS")]
    container_status_check_seconds: Option<String>,
    /// How long a Pod may take to start, from its creation [default: 180]
    #[arg(long, env = "SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS", value_name = "SECONDS")]
    container_init_timeout_seconds: Option<String>,
    /// How long a connector may write nothing before its task fails [default: 8000]
    #[arg(long, env = "SYNCCTL_SILENCE_SECONDS", value_name = "SECONDS")]
    silence_seconds: Option<String>,
    /// How long a container may take to end after TERM [default: 60]
    #[arg(long, env = "SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", value_name = "SECONDS")]
    container_grace_shutdown_seconds: Option<String>,
    /// How long a read may take [default: 48]
    #[arg(long, env = "SYNCCTL_TASK_TIMEOUT_HOURS", value_name = "HOURS")]
    task_timeout_hours: Option<String>,
    /// CPU reserved for the connector [default: 100]
    #[arg(long, env = "SYNCCTL_SOURCE_CPU_REQUEST_MILLICORES", value_name = "MILLICORES")]
    source_cpu_request_millicores: Option<String>,
    /// CPU limit of the connector; 0 is none [default: 1000]
    #[arg(long, env = "SYNCCTL_SOURCE_CPU_LIMIT_MILLICORES", value_name = "MILLICORES")]
    source_cpu_limit_millicores: Option<String>,
    /// Memory reserved for the connector [default: 256]
    #[arg(long, env = "SYNCCTL_SOURCE_MEMORY_REQUEST_MI", value_name = "MI")]
    source_memory_request_mi: Option<String>,
    /// Memory limit of the connector; 0 is none [default: 8192]
    #[arg(long, env = "SYNCCTL_SOURCE_MEMORY_LIMIT_MI", value_name = "MI")]
    source_memory_limit_mi: Option<String>,
    /// CPU reserved for the sidecar [default: 0]
    #[arg(long, env = "SYNCCTL_SIDECAR_CPU_REQUEST_MILLICORES", value_name = "MILLICORES")]
    sidecar_cpu_request_millicores: Option<String>,
    /// CPU limit of the sidecar; 0 is none [default: 500]
    #[arg(long, env = "SYNCCTL_SIDECAR_CPU_LIMIT_MILLICORES", value_name = "MILLICORES")]
    sidecar_cpu_limit_millicores: Option<String>,
    /// Memory reserved for the sidecar [default: 0]
    #[arg(long, env = "SYNCCTL_SIDECAR_MEMORY_REQUEST_MI", value_name = "MI")]
    sidecar_memory_request_mi: Option<String>,
    /// Memory limit of the sidecar; 0 is none [default: 4096]
    #[arg(long, env = "SYNCCTL_SIDECAR_MEMORY_LIMIT_MI", value_name = "MI")]
    sidecar_memory_limit_mi: Option<String>,
    /// Options for connectors that run on a JVM [default: -Xmx7000m]
    #[arg(long, env = "SYNCCTL_SOURCE_JAVA_OPTS", value_name = "OPTIONS", allow_hyphen_values = true)]
    source_java_opts: Option<String>,
    /// Least level of the program's own log: DEBUG, INFO, WARN, ERROR [default: INFO]
    #[arg(long, env = "SYNCCTL_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// Least level in the table task_log [default: INFO]
    #[arg(long, env = "SYNCCTL_DB_LOG_LEVEL", value_name = "LEVEL")]
    db_log_level: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// The settings, typed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The database of results as this process reaches it.
    pub database_url: Secret,
    /// Where rows go that have no destination of their own.
    pub bulker: BulkerSettings,
    /// Where tasks run.
    pub engine: Engine,
    /// The database of results is the embedded one, which lives there; its URL is known once it runs.
    pub embedded: Option<ServerDirectory>,
    /// Where rows go that have no destination of their own, nor a Bulker.
    pub warehouse: Option<String>,
    /// How Pods are made.
    pub pod: PodSettings,
    /// How often Pods are listed, besides the watch.
    pub status_check: Duration,
    /// How long a Pod may take to start.
    pub init_timeout: Duration,
    /// How long a read may take.
    pub task_timeout: Duration,
}

/// Where tasks run.
#[derive(Debug, Clone)]
pub enum Engine {
    /// In a cluster.
    Kubernetes(ClientSettings),
    /// On this machine.
    Local(LocalSettings),
}

/// A Bulker instance for destinations that leave it out.
#[derive(Debug, Clone, Default)]
pub struct BulkerSettings {
    /// Where it is: `http` or `https`.
    pub url: Option<String>,
    /// Its token; for that URL alone.
    pub auth_token: Option<Secret>,
}

impl Settings {
    /// The same for a connector under development.
    pub fn with_exec(mut self, command: Option<String>) -> Result<Self, Failure> {
        match (&mut self.engine, command) {
            (_, None) => {}
            (Engine::Local(local), command) => local.exec = command,
            (Engine::Kubernetes(_), Some(_)) => {
                let text = "--exec runs a command of this machine, and the task would run in a cluster: add --local";
                return Err(Failure::new(Class::Usage, text));
            }
        }
        Ok(self)
    }
}

/// One setting that is not there, as it is reported.
struct Wanted {
    variable: &'static str,
    flag: &'static str,
    example: &'static str,
}

const DATABASE_URL: Wanted = Wanted {
    variable: "SYNCCTL_DATABASE_URL",
    flag: "--database-url",
    example: "postgresql://user:pass@localhost:5432/postgres?sslmode=disable&search_path=bulker",
};
const SIDECAR_IMAGE: Wanted =
    Wanted { variable: "SYNCCTL_SIDECAR_IMAGE", flag: "--sidecar-image", example: "syncctl:0.1.0" };

/// Collects what is wrong, so that all of it is told at once.
#[derive(Default)]
struct Problems {
    missing: Vec<String>,
    malformed: Vec<String>,
}

impl Problems {
    fn required(&mut self, value: Option<String>, wanted: &Wanted) -> String {
        present(value).unwrap_or_else(|| {
            self.missing.push(format!("  {} (or {}), e.g. {}", wanted.variable, wanted.flag, wanted.example));
            String::new()
        })
    }

    fn number(&mut self, value: Option<String>, variable: &str, default: u32) -> u32 {
        let Some(text) = present(value) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.malformed.push(format!("  {variable} is {text:?}: expected a whole number such as {default}"));
            default
        })
    }

    fn at_least_one(&mut self, value: Option<String>, variable: &str, default: u32) -> u32 {
        let number = self.number(value, variable, default);
        if number == 0 {
            self.malformed.push(format!("  {variable} is 0: expected at least 1"));
        }
        number
    }

    fn seconds(&mut self, value: Option<String>, variable: &str, default: u32) -> Duration {
        Duration::from_secs(u64::from(self.at_least_one(value, variable, default)))
    }

    fn hours(&mut self, value: Option<String>, variable: &str) -> Duration {
        let default = u32::try_from(DEFAULT_TIMEOUT_HOURS).expect("a small constant");
        let hours = self.at_least_one(value, variable, default);
        let time = Duration::from_secs(u64::from(hours) * 3600);
        if time > LONGEST_TIMEOUT {
            self.malformed.push(format!("  {variable} is longer than a Pod may take"));
        }
        time
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

    fn level(&mut self, value: Option<String>, variable: &str) -> String {
        let Some(text) = present(value) else { return "INFO".to_owned() };
        let upper = text.to_ascii_uppercase();
        if !["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"].contains(&upper.as_str()) {
            self.malformed.push(format!("  {variable} is {text:?}: expected DEBUG, INFO, WARN or ERROR"));
        }
        upper
    }

    /// Requests and limits of one container, CPU and memory, each a pair.
    fn resources(
        &mut self,
        whose: &str,
        cpu: (Option<String>, Option<String>),
        memory: (Option<String>, Option<String>),
        default: Resources,
    ) -> Resources {
        let mut number = |value, what: &str, default| self.number(value, &format!("SYNCCTL_{whose}_{what}"), default);
        Resources {
            cpu_request: number(cpu.0, "CPU_REQUEST_MILLICORES", default.cpu_request),
            cpu_limit: number(cpu.1, "CPU_LIMIT_MILLICORES", default.cpu_limit),
            memory_request: number(memory.0, "MEMORY_REQUEST_MI", default.memory_request),
            memory_limit: number(memory.1, "MEMORY_LIMIT_MI", default.memory_limit),
        }
    }

    fn labels(&mut self, value: Option<String>, variable: &str) -> BTreeMap<String, String> {
        let Some(text) = present(value) else { return BTreeMap::new() };
        serde_json::from_str(&text).unwrap_or_else(|_| {
            self.malformed.push(format!(r#"  {variable} is {text:?}: expected JSON such as {{"disktype":"ssd"}}"#));
            BTreeMap::new()
        })
    }

    fn into_result(self) -> Result<(), Failure> {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing settings:\n{}", self.missing.join("\n")));
        }
        if !self.malformed.is_empty() {
            parts.push(format!("malformed settings:\n{}", self.malformed.join("\n")));
        }
        if parts.is_empty() { Ok(()) } else { Err(Failure::new(Class::Usage, parts.join("\n"))) }
    }
}

/// How long a task may take to start: over a slow line an installation takes longer than most images.
fn init_default(is_local: bool) -> u32 {
    if is_local { 600 } else { DEFAULT_INIT_TIMEOUT_SECONDS }
}

/// An empty value counts as absent.
fn present(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.trim().is_empty())
}

impl SettingsArgs {
    /// Checks and types everything, or says all that is wrong.
    pub fn resolve(self) -> Result<Settings, Failure> {
        let Self {
            database_url,
            sidecar_database_url,
            sidecar_image,
            init_image,
            bulker_url,
            bulker_auth_token,
            kubernetes_client_config,
            kubeconfig,
            context,
            namespace,
            kubernetes_node_selector,
            pods_service_account,
            container_status_check_seconds,
            container_init_timeout_seconds,
            silence_seconds,
            container_grace_shutdown_seconds,
            task_timeout_hours,
            source_cpu_request_millicores,
            source_cpu_limit_millicores,
            source_memory_request_mi,
            source_memory_limit_mi,
            sidecar_cpu_request_millicores,
            sidecar_cpu_limit_millicores,
            sidecar_memory_request_mi,
            sidecar_memory_limit_mi,
            source_java_opts,
            log_level,
            db_log_level,
            engine,
        } = self;
        let mut problems = Problems::default();
        let (local, embedded) = engine.resolve(&mut problems)?.unzip();
        let is_local = local.is_some();
        // On this machine there is the embedded database, and the sidecar is this program.
        let [database_url, sidecar_image] =
            [(database_url, &DATABASE_URL), (sidecar_image, &SIDECAR_IMAGE)].map(|(value, wanted)| {
                if is_local { present(value).unwrap_or_default() } else { problems.required(value, wanted) }
            });
        let source = match (kubeconfig, present(kubernetes_client_config)) {
            (Some(path), _) => Source::Path(path),
            (None, Some(config)) => Source::parse(&config),
            (None, None) => Source::Kubectl,
        };
        let init_timeout = problems.seconds(
            container_init_timeout_seconds,
            "SYNCCTL_CONTAINER_INIT_TIMEOUT_SECONDS",
            init_default(is_local),
        );
        let silence_seconds =
            problems.at_least_one(silence_seconds, "SYNCCTL_SILENCE_SECONDS", DEFAULT_SILENCE_SECONDS);
        let grace = problems.number(container_grace_shutdown_seconds, "SYNCCTL_CONTAINER_GRACE_SHUTDOWN_SECONDS", 60);
        let task_timeout = problems.hours(task_timeout_hours, "SYNCCTL_TASK_TIMEOUT_HOURS");
        // On one machine nobody else's share has to be kept free.
        let cpu = |limit| if is_local { 0 } else { limit };
        let source_resources = problems.resources(
            "SOURCE",
            (source_cpu_request_millicores, source_cpu_limit_millicores),
            (source_memory_request_mi, source_memory_limit_mi),
            Resources { cpu_request: 100, cpu_limit: cpu(1000), memory_request: 256, memory_limit: 8192 },
        );
        let sidecar_resources = problems.resources(
            "SIDECAR",
            (sidecar_cpu_request_millicores, sidecar_cpu_limit_millicores),
            (sidecar_memory_request_mi, sidecar_memory_limit_mi),
            Resources { cpu_request: 0, cpu_limit: cpu(500), memory_request: 0, memory_limit: 4096 },
        );
        // On one machine the sidecar reaches what this process reaches.
        let sidecar_database_url =
            present(sidecar_database_url).filter(|_| !is_local).unwrap_or_else(|| database_url.clone());
        let client = ClientSettings { source, context: present(context), namespace: present(namespace) };
        let settings = Settings {
            database_url: Secret::from(database_url.clone()),
            bulker: problems.bulker(bulker_url, bulker_auth_token),
            engine: local.map_or(Engine::Kubernetes(client), Engine::Local),
            embedded: embedded.filter(|_| database_url.is_empty()),
            warehouse: None,
            status_check: problems.seconds(
                container_status_check_seconds,
                "SYNCCTL_CONTAINER_STATUS_CHECK_SECONDS",
                10,
            ),
            init_timeout,
            task_timeout,
            pod: PodSettings {
                sidecar_image,
                // A foreign sidecar is an image.
                init_image: present(init_image).filter(|_| !is_local),
                sidecar_database_url: Secret::from(sidecar_database_url),
                node_selector: problems.labels(kubernetes_node_selector, "SYNCCTL_KUBERNETES_NODE_SELECTOR"),
                service_account: present(pods_service_account),
                grace_seconds: grace,
                init_timeout_seconds: u32::try_from(init_timeout.as_secs()).unwrap_or(u32::MAX),
                silence_seconds,
                source_resources,
                sidecar_resources,
                java_opts: present(source_java_opts).unwrap_or_else(|| "-Xmx7000m".to_owned()),
                log_level: problems.level(log_level, "SYNCCTL_LOG_LEVEL"),
                db_log_level: problems.level(db_log_level, "SYNCCTL_DB_LOG_LEVEL"),
            },
        };
        problems.into_result()?;
        Ok(settings)
    }
}
