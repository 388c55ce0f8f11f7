//! Connectors that a test writes inline, as a shell script.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Done, Program, World, unique};

/// Runs what its configuration holds.
pub const SCRIPT: &str = "syncctl-test/script:1";

/// What every script may use.
const WORDS: &str = r#"
row() { # STREAM OBJECT
    printf '{"type":"RECORD","record":{"stream":"%s","data":%s,"emitted_at":1700000000000}}\n' "$1" "$2"
}
rows() { # STREAM FIRST LAST
    awk -v stream="$1" -v first="$2" -v last="$3" 'BEGIN { for (id = first; id <= last; id++)
        printf "{\"type\":\"RECORD\",\"record\":{\"stream\":\"%s\",\"data\":{\"id\":%d},\"emitted_at\":1700000000000}}\n", stream, id }'
}
state() { # STREAM STATE
    printf '{"type":"STATE","state":{"type":"STREAM","stream":{"stream_descriptor":{"name":"%s"},"stream_state":%s}}}\n' "$1" "$2"
}
status() { # STREAM STATUS
    printf '{"type":"TRACE","trace":{"type":"STREAM_STATUS","emitted_at":1,"stream_status":{"stream_descriptor":{"name":"%s"},"status":"%s"}}}\n' "$1" "$2"
}
log() { printf '{"type":"LOG","log":{"level":"%s","message":"%s"}}\n' "$1" "$2"; }
"#;

/// The configuration of a connector that does this when it reads.
pub fn config(script: &str) -> Value {
    json!({"run": STANDARD.encode(format!("{WORDS}\n{script}"))})
}

impl World {
    /// A read of a connector that does this, into this world's schema.
    pub fn script(&self, script: &str, catalog: &Value, task: &str) -> Program {
        self.script_into(&self.destination(), script, catalog, task)
    }

    /// The same into another destination, whose configuration is in this file.
    pub fn script_into(&self, destination: &str, script: &str, catalog: &Value, task: &str) -> Program {
        let config = self.json("script-config.json", &config(script));
        let catalog = self.json("script-catalog.json", catalog);
        let documents = ["--config", &config, "--catalog", &catalog, "--destination-config", destination];
        self.syncctl(&["read", SCRIPT, "--sync-id", "sync", "--task-id", task, "-o", "json"]).with(&documents)
    }

    /// The same, run to its end.
    pub fn run_script(&self, script: &str, catalog: &Value) -> Done {
        self.script(script, catalog, &unique("script-")).run()
    }
}
