//! Every environment variable of the command line and the service: name, value, default and meaning, each once.
//!
//! The flags' help, `docs/settings.md` and the man pages come from [`ALL`]; [`crate::config`] reads the values. What the
//! controller sets for its own sidecar is in [`crate::contract`].

/// An environment variable that is also a flag.
#[derive(Debug)]
pub struct Variable {
    /// `SYNCCTL_…`.
    pub name: &'static str,
    /// Placeholder of the value in help texts; it names the unit of a number.
    pub value: &'static str,
    /// The value in use where the variable is absent or empty, or a description of it; empty where there is none.
    pub default: &'static str,
    /// What it sets, in one line.
    pub doc: &'static str,
    /// Whether the value may hold a password or token: then no help text shows it.
    pub is_secret: bool,
}

impl Variable {
    /// The default of a numeric variable, which differs for some where tasks run on this machine.
    ///
    /// # Panics
    ///
    /// Where the default is no number; a test parses all of those that [`crate::config`] reads as numbers.
    pub fn number(&self, is_local: bool) -> u32 {
        let (default, local) = self.default.split_once(LOCAL_DEFAULT).unwrap_or((self.default, self.default));
        let text = if is_local { local } else { default };
        text.parse().unwrap_or_else(|_| unreachable!("the default of {} is a number", self.name))
    }

    /// The text of `--help`.
    pub fn help(&self) -> String {
        if self.default.is_empty() { self.doc.to_owned() } else { format!("{} [default: {}]", self.doc, self.default) }
    }
}

/// Separates a default from the one where tasks run on this machine.
const LOCAL_DEFAULT: &str = ", with --local ";

/// Defines the constants and the list of them, so that none can be left out of it.
macro_rules! variables {
    ($($ident:ident $value:literal $([secret $secret:tt])? = $default:literal, $doc:literal;)*) => {
        $(
            #[doc = $doc]
            pub const $ident: Variable = Variable {
                name: concat!("SYNCCTL_", stringify!($ident)),
                value: $value,
                default: $default,
                doc: $doc,
                is_secret: false $(|| $secret)?,
            };
        )*
        /// All of them, in the order of the documentation.
        pub const ALL: &[Variable] = &[$($ident),*];
    };
}

variables! {
    ENGINE "ENGINE" = "kubernetes", "Where tasks run: kubernetes or local";
    LOCAL_RUNTIME "RUNTIME" = "auto",
        "Where connectors come from with --local: auto, docker, podman or python (the package of the same name)";
    CONTAINER_READ_ONLY "BOOL" = "true",
        "Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more";
    DATABASE_URL "URL" [secret true] = "with --local, an embedded database: see `syncctl db`",
        "Postgres database of results, logs and states; set it in the environment, where other users cannot see it";
    SIDECAR_DATABASE_URL "URL" [secret true] = "the database URL", "The same database as Pods reach it";
    OWN_SCHEMA "SCHEMA" = "syncctl",
        "Schema of that database for tables that other programs do not know; created where the role may";
    SIDECAR_IMAGE "IMAGE" = "in a Pod, the image of this program",
        "Image with the sidecar, such as the one that `syncctl image` writes";
    INIT_IMAGE "IMAGE" = "", "Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar";
    IMAGE_POLICY "PATTERNS" = "every image",
        "Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the \
         word require-digest";
    BULKER_URL "URL" [secret true] = "", "Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise";
    BULKER_AUTH_TOKEN "TOKEN" [secret true] = "",
        "Token for that Bulker instance; set it in the environment, where other users cannot see it";
    DESTINATION_HOSTS "HOSTS" = "any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets",
        "Hosts that callers' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an \
         optional :port, and directories of Unix sockets; separated by commas";
    KUBERNETES_CLIENT_CONFIG "CONFIG" [secret true] = "",
        "Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of \
         this Pod";
    KUBERNETES_CONTEXT "NAME" = "the current context", "Context of the kubeconfig";
    KUBERNETES_NAMESPACE "NAME" = "the context's namespace, else default", "Namespace of the Pods";
    KUBERNETES_NODE_SELECTOR "JSON" = "", "Nodes for the Pods, as a JSON object of labels";
    PODS_SERVICE_ACCOUNT "NAME" = "", "Service account of the Pods; its token is not mounted";
    CONTAINER_STATUS_CHECK_SECONDS "SECONDS" = "10", "How often Pods are listed, in addition to the watch";
    CONTAINER_INIT_TIMEOUT_SECONDS "SECONDS" = "180, with --local 600",
        "How long a task may take to start, counted from its creation; with --local this includes the installation";
    SILENCE_SECONDS "SECONDS" = "8000", "How long a connector may write nothing before its task fails";
    CONTAINER_GRACE_SHUTDOWN_SECONDS "SECONDS" = "60", "How long a container may take to end after TERM";
    TASK_TIMEOUT_HOURS "HOURS" = "48", "How long a read may take; --timeout is finer";
    SOURCE_CPU_REQUEST_MILLICORES "MILLICORES" = "100", "CPU reserved for the connector";
    SOURCE_CPU_LIMIT_MILLICORES "MILLICORES" = "1000, with --local 0", "CPU limit of the connector; 0 means none";
    SOURCE_MEMORY_REQUEST_MI "MI" = "256", "Memory reserved for the connector";
    SOURCE_MEMORY_LIMIT_MI "MI" = "8192", "Memory limit of the connector; 0 means none";
    SIDECAR_CPU_REQUEST_MILLICORES "MILLICORES" = "0", "CPU reserved for the sidecar";
    SIDECAR_CPU_LIMIT_MILLICORES "MILLICORES" = "500, with --local 0", "CPU limit of the sidecar; 0 means none";
    SIDECAR_MEMORY_REQUEST_MI "MI" = "0", "Memory reserved for the sidecar";
    SIDECAR_MEMORY_LIMIT_MI "MI" = "4096", "Memory limit of the sidecar; 0 means none";
    SOURCE_EPHEMERAL_STORAGE_LIMIT_MI "MI" = "20480", "Limit of what the connector stores on its node; 0 means none";
    SIDECAR_EPHEMERAL_STORAGE_LIMIT_MI "MI" = "1024", "Limit of what the sidecar stores on its node; 0 means none";
    SOURCE_CAPABILITIES "LIST" = "",
        "Linux capabilities that the connector's container keeps, separated by commas, for images that do not run without: \
         CHOWN,SETGID,SETUID";
    SOURCE_JAVA_OPTS "OPTIONS" = "-Xmx7000m", "Options for connectors that run on a JVM";
    LOG_LEVEL "LEVEL" = "INFO", "Least level of the program's own log: DEBUG, INFO, WARN or ERROR";
    DB_LOG_LEVEL "LEVEL" = "INFO", "Least level in the table task_log";
    STATE_DIR "FOLDER" = "$XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl",
        "Folder of what this machine must keep: the embedded database and the tasks that run with --local";
    CACHE_DIR "FOLDER" = "$XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl",
        "Folder of what can be fetched again: the connectors that --local installs";
    POSTGRES_BIN "FOLDER" = "PATH, then where packages install them",
        "Folder of the programs postgres and initdb; no other folder is searched then";
    HTTP_PORT "PORT" = "3043", "Port that `serve` listens on";
    PORT "PORT" = "", "Older name of SYNCCTL_HTTP_PORT";
    HTTP_HOST "ADDRESS" = "0.0.0.0", "Address that `serve` listens on";
    AUTH_TOKENS "TOKENS" [secret true] = "everyone may call",
        "Tokens of callers, separated by commas: plain ones, or salt.hash as `syncctl token` makes them; set it in the \
         environment";
    RAW_AUTH_TOKENS "TOKENS" [secret true] = "", "More tokens, all of them plain";
    TOKENS_FILE "FILE" [secret true] = "",
        "YAML file of tokens with names and limits, as `syncctl token create` writes it; read again when it changes";
    TOKEN_SECRET "SECRET" [secret true] = "the public one of Jitsu's sync-controller",
        "Secret that tokens are hashed with; several during a rotation, separated by commas";
    CONSOLE_URL "URL" [secret true] = "",
        "Console that `serve` asks to start the read once a discover with thenRun has ended";
    CONSOLE_TOKEN "TOKEN" [secret true] = "", "Token for that console; set it in the environment";
    INSTANCE_ID "ID" = "a UUID stored in ~/.syncctl/instance_id",
        "Name of this process in metrics and in the Lease; env://NAME takes it from another variable";
    HTTP_MAX_BODY_MI "MI" = "32", "Size limit of a request body";
    HTTP_MAX_CONNECTIONS "COUNT" = "1024",
        "Limit of concurrent connections; three quarters of them for requests, of which one address has three quarters";
    HTTP_IDLE_SECONDS "SECONDS" = "10",
        "How long a caller may take for the head of a request, and pause while it sends a body or reads a response; less than \
         64 KiB a second on average counts as a pause";
    TLS_CERT "FILE" = "", "Certificate chain that `serve` presents, in PEM format; read again when it changes";
    TLS_KEY "FILE" [secret true] = "", "Private key of that certificate, in PEM format";
    TLS_CLIENT_CA "FILE" = "",
        "Root certificates, in PEM format: callers must present a certificate that one of them has signed, in addition to a \
         token; probes need none";
    START_SPREAD_SECONDS "SECONDS" = "59",
        "Longest delay of a scheduled read where more than four are due at once; 0 starts all of them at once";
    SYNC_TASK_LOG_SIZE "ROWS" = "3000",
        "Rows of source_task that are kept of each sync; older ones are deleted once they exceed the age as well";
    SYNC_TASK_LOG_AGE "DAYS" = "60",
        "How long all rows of source_task are kept; older ones are deleted where a sync has more than the number above";
    TASK_LOG_KEEP_DAYS "DAYS" = "",
        "How long lines of task_log are kept; 0 is without limit, the default is 60 where syncctl has created the table, else 0";
    ALLOW_UNISOLATED "BOOL" = "false",
        "Whether `serve --local` runs Python packages with all of its own rights where it cannot isolate them";
    LOG_FORMAT "FORMAT" = "text", "Format of the service's own log: text or json";
    SYNCS_ENABLED "BOOL" = "true",
        "`false` or `0` ends `serve` at once: how a deployment is switched off without removing it";
}

#[cfg(test)]
mod tests {
    use super::{ALL, CONTAINER_INIT_TIMEOUT_SECONDS};

    /// Values that are numbers.
    const UNITS: [&str; 8] = ["SECONDS", "HOURS", "DAYS", "MILLICORES", "MI", "COUNT", "ROWS", "PORT"];

    #[test]
    fn defaults_of_numeric_variables_are_numbers() {
        let numeric = ALL.iter().filter(|variable| UNITS.contains(&variable.value) && !variable.default.is_empty());
        let numbers: Vec<[u32; 2]> =
            numeric.map(|variable| [false, true].map(|local| variable.number(local))).collect();
        assert!(numbers.len() > 15, "{numbers:?}");
        assert_eq!(CONTAINER_INIT_TIMEOUT_SECONDS.number(false), 180);
        assert_eq!(CONTAINER_INIT_TIMEOUT_SECONDS.number(true), 600);
    }

    #[test]
    fn docs_are_one_sentence_without_a_full_stop() {
        for variable in ALL {
            assert!(!variable.doc.is_empty() && !variable.doc.ends_with('.') && !variable.doc.contains('\n'));
        }
    }
}
