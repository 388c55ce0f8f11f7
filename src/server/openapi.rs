//! `/openapi.json`: what the service takes and answers, as OpenAPI 3.1. A test holds it against the routes.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// The document.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(build);
    &DOCUMENT
}

/// Ids and keys: any text without control characters.
const ID: &str = r"^[^\x00-\x1F\x7F]*[^\x00-\x20\x7F][^\x00-\x1F\x7F]*$";

fn build() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "syncctl",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Runs Airbyte source connectors as tasks in Kubernetes Pods",
            "description": "spec, check, discover and read answer as soon as the task's Pod is accepted; the results \
                            are written to the Postgres tables source_spec, source_check, source_catalog, source_task, \
                            source_state and task_log.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"token": []}],
        "paths": {
            "/spec": {"get": spec()},
            "/check": {"post": configured("check", "Test a connector's configuration", "source_check", vec![])},
            "/discover": {"post": configured(
                "discover",
                "List the streams that a configuration gives access to",
                "source_catalog",
                vec![
                    optional_id("syncId", "Logs are written under this sync."),
                    optional_id("taskId", "Logs are written under this task."),
                ],
            )},
            "/read": {"post": read()},
            "/cancel": {"get": cancel()},
            "/tasks": {"get": tasks()},
            "/tasks/{taskId}": {"get": task()},
            "/health": {"get": open("health", "Whether the process lives", json!({"200": health("It does.")}))},
            "/ready": {"get": open(
                "ready",
                "Whether database and cluster answer and the Pods are known",
                json!({"200": health("All of it."), "503": health("Not all of it.")}),
            )},
            "/metrics": {"get": metrics()},
            "/openapi.json": {"get": openapi()},
        },
        "components": {
            "securitySchemes": {"token": {
                "type": "http", "scheme": "bearer",
                "description": "One of SYNCCTL_AUTH_TOKENS; not asked for where that is not set.",
            }},
            "schemas": schemas(),
            "responses": responses(),
        },
    })
}

fn schemas() -> Value {
    let accepted = json!({
        "type": "object",
        "required": ["status", "ok", "taskId", "startedAt"],
        "properties": {
            "status": {"const": "ok"},
            "ok": {"const": true},
            "taskId": {"type": "string"},
            "startedAt": {"type": "integer", "description": "Unix time in seconds."},
            "taskStatus": {"type": "string", "description": "Of a read: RUNNING, or how the same request ended before."},
        },
    });
    let stream = json!({
        "type": "object",
        "required": ["events", "bytes", "status"],
        "properties": {
            "events": {"type": "integer", "minimum": 0},
            "bytes": {"type": "integer", "minimum": 0},
            "status": {"enum": ["PENDING", "RUNNING", "SUCCESS", "PARTIAL", "FAILED", "CANCELLED", "TIME_EXCEEDED"]},
            "error": {"type": "string"},
        },
    });
    let line = json!({
        "type": "object",
        "required": ["timestamp", "level", "logger", "message"],
        "properties": {
            "timestamp": {"type": "string", "format": "date-time"},
            "level": {"type": "string"},
            "logger": {"type": "string"},
            "message": {"type": "string"},
        },
    });
    let task = json!({
        "type": "object",
        "required": ["taskId", "syncId", "package", "version", "status", "startedAt", "updatedAt", "streams"],
        "properties": {
            "taskId": {"type": "string"},
            "syncId": {"type": "string"},
            "package": {"type": "string"},
            "version": {"type": "string"},
            "status": {
                "type": "string",
                "description": "RUNNING, SUCCESS, PARTIAL, FAILED, CANCELLED, TIME_EXCEEDED, SKIPPED, or what another \
                                program wrote.",
            },
            "startedAt": {"type": "string", "format": "date-time"},
            "updatedAt": {"type": "string", "format": "date-time"},
            "startedBy": {"description": "As the caller gave it."},
            "streams": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Stream"}},
            "metrics": {"type": ["object", "null"], "properties": {
                "cpu_usage": {"type": "number", "description": "Seconds."},
                "mem_usage": {"type": "integer", "description": "Bytes."},
            }},
            "error": {"type": ["string", "null"]},
            "logs": {"type": "array", "items": {"$ref": "#/components/schemas/LogLine"}},
        },
    });
    let error = json!({
        "type": "object",
        "required": ["ok", "error"],
        "properties": {
            "ok": {"const": false},
            "error": {"type": "string"},
            "problems": {"type": "array", "items": {"type": "string"}, "description": "One entry each."},
            "class": {"type": "string", "description": "What kind of failure it is."},
            "hint": {"type": ["string", "null"], "description": "What to change."},
            "taskId": {"type": "string", "description": "Of a conflict: the task that is in the way."},
        },
    });
    let health = json!({
        "type": "object",
        "required": ["status", "ok"],
        "properties": {
            "status": {"enum": ["pass", "fail"]},
            "ok": {"type": "boolean"},
            "parts": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
    });
    json!({"Accepted": accepted, "Stream": stream, "LogLine": line, "Task": task, "Error": error, "Health": health})
}

/// The errors that every endpoint may answer; which are listed where is told by [`with_errors`].
const ERRORS: [(&str, &str, &str); 13] = [
    ("400", "BadRequest", "Something is missing or malformed; all of it is named."),
    ("401", "Unauthorized", "No token, or a wrong one."),
    ("404", "NotFound", "There is no such thing."),
    ("405", "MethodNotAllowed", "Another method is needed; the header Allow tells it."),
    ("408", "RequestTimeout", "The request did not arrive in time."),
    ("409", "Conflict", "Another task is in the way."),
    ("413", "ContentTooLarge", "The body, or what is in it, is too large."),
    ("414", "UriTooLong", "The path with its query is too long."),
    ("417", "ExpectationFailed", "Only 100-continue may be expected."),
    ("431", "HeaderFieldsTooLarge", "Too many or too large headers."),
    ("500", "InternalError", "A setting or right of the service is missing; the text says which."),
    ("503", "Unavailable", "Too busy, or database or cluster do not answer: try again later."),
    ("504", "GatewayTimeout", "The request took too long."),
];

fn responses() -> Value {
    let mut all = serde_json::Map::new();
    for (status, name, description) in ERRORS {
        let mut response = json!({
            "description": description,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        });
        let header = |description: &str| json!({"description": description, "schema": {"type": "string"}});
        match status {
            "401" => response["headers"] = json!({"WWW-Authenticate": header("Bearer")}),
            "405" => response["headers"] = json!({"Allow": header("The method")}),
            "503" => response["headers"] = json!({"Retry-After": header("Seconds")}),
            _ => {}
        }
        all.insert(name.to_owned(), response);
    }
    Value::Object(all)
}

/// The answers of an endpoint and the errors that it may give besides those that all may.
fn with_errors(mut answers: Value, more: &[&str]) -> Value {
    for (status, name, _) in ERRORS {
        let any = ["400", "401", "405", "408", "413", "414", "417", "431", "503", "504"].contains(&status);
        if (any || more.contains(&status)) && answers.get(status).is_none() {
            answers[status] = json!({"$ref": format!("#/components/responses/{name}")});
        }
    }
    answers
}

fn json_answer(description: &str, schema: &Value) -> Value {
    json!({"200": {"description": description, "content": {"application/json": {"schema": schema}}}})
}

fn accepted() -> Value {
    json_answer("The Pod is accepted.", &json!({"$ref": "#/components/schemas/Accepted"}))
}

fn query(name: &str, required: bool, description: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "query", "required": required, "description": description, "schema": schema})
}

fn id_schema() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 512, "pattern": ID})
}

fn id(name: &str, description: &str) -> Value {
    query(name, true, description, &id_schema())
}

fn optional_id(name: &str, description: &str) -> Value {
    query(name, false, description, &id_schema())
}

fn flag(name: &str, description: &str) -> Value {
    query(name, false, description, &json!({"type": "boolean"}))
}

fn connector() -> Vec<Value> {
    vec![
        query(
            "package",
            true,
            "The connector's image without its version.",
            &json!({"type": "string", "maxLength": 255, "examples": ["airbyte/source-faker"]}),
        ),
        query(
            "version",
            true,
            "The version of the image: a tag, or sha256:….",
            &json!({"type": "string", "maxLength": 128, "examples": ["7.2.1"]}),
        ),
        query(
            "connectorType",
            false,
            "The type of the connector.",
            &json!({"enum": ["airbyte"], "default": "airbyte"}),
        ),
        query("startedBy", false, "Who asks for it: JSON, kept with the task.", &json!({"type": "string"})),
    ]
}

fn body(properties: &Value, required: &[&str]) -> Value {
    json!({
        "required": true,
        "content": {"application/json": {"schema": {
            "type": "object", "required": required, "properties": properties,
        }}},
    })
}

fn spec() -> Value {
    json!({
        "operationId": "spec",
        "summary": "Get a connector's specification; it is written to source_spec",
        "parameters": connector(),
        "responses": with_errors(accepted(), &["500"]),
    })
}

fn configured(name: &str, summary: &str, table: &str, more: Vec<Value>) -> Value {
    let mut parameters = connector();
    parameters.push(id("storageKey", "The key under which the result is stored."));
    parameters.extend(more);
    json!({
        "operationId": name,
        "summary": format!("{summary}; the result is written to {table}"),
        "parameters": parameters,
        "requestBody": body(&json!({"config": {"type": "object", "description": "Credentials."}}), &["config"]),
        "responses": with_errors(accepted(), &["409", "500"]),
    })
}

fn read() -> Value {
    let text = json!({"type": "string"});
    let mut parameters = connector();
    parameters.extend([
        id("syncId", "The sync that the task belongs to; one task of a sync runs at a time."),
        id("taskId", "Unique for each task. The same request with the same id starts nothing a second time."),
        query("namespace", false, "Schema for the tables; ${SOURCE_NAMESPACE} stands for the stream's own, and with ${LEGACY} everything goes \
             into the default schema, and the namespace into the tables' names.", &text),
        query("tableNamePrefix", false, "Put before every table name; a table_name in the catalog is taken as it is.", &text),
        flag("toSameCase", "Lower-case table and column names."),
        flag("addMeta", "Add a column _jitsu_timestamp."),
        flag("deduplicate", "Merge by primary key where the catalog asks for it; true unless told otherwise."),
        flag("fullSync", "Start from scratch and replace the tables."),
        flag("debug", "Ask the connector for debug messages."),
        query(
            "silenceSeconds",
            false,
            "How long the connector may write nothing before the task fails; SYNCCTL_SILENCE_SECONDS unless told otherwise.",
            &json!({"type": "integer", "minimum": 1, "maximum": 604_800}),
        ),
        query(
            "maxRecords",
            false,
            "End as a success once this many records, of all streams together, are loaded. A stream that is cut off then \
             replaces no rows: where its table has some, its own are dropped.",
            &json!({"type": "integer", "minimum": 1}),
        ),
    ]);
    let properties = json!({
        "config": {"type": "object", "description": "Credentials."},
        "catalog": {"type": "object", "description": "The configured catalog: selected streams and how to read them."},
        "state": {"type": ["object", "array", "null"], "description": "The state of an earlier task."},
        "destinationConfig": {
            "type": ["object", "null"],
            "description": "Where the rows go: destinationType and credentials; the Bulker of SYNCCTL_BULKER_URL if left out.",
        },
        "functionsEnv": {"description": "Handed to a sidecar that knows functions."},
    });
    json!({
        "operationId": "read",
        "summary": "Read rows and load them into the destination; status and logs are in source_task and task_log",
        "parameters": parameters,
        "requestBody": body(&properties, &["config", "catalog"]),
        "responses": with_errors(accepted(), &["409", "500"]),
    })
}

fn cancel() -> Value {
    let schema = json!({
        "type": "object",
        "required": ["status", "ok", "taskId", "taskStatus"],
        "properties": {
            "status": {"const": "ok"},
            "ok": {"const": true},
            "taskId": {"type": "string"},
            "taskStatus": {"type": "string", "description": "CANCELLED, or how the task had ended before."},
        },
    });
    json!({
        "operationId": "cancel",
        "summary": "Cancel a read",
        "parameters": [
            id("package", "The connector's image without its version."),
            id("syncId", "The sync of the task."),
            id("taskId", "The task."),
        ],
        "responses": with_errors(json_answer("The task is cancelled, or had ended.", &schema), &["404", "500"]),
    })
}

fn tasks() -> Value {
    let schema = json!({
        "type": "object",
        "required": ["status", "ok", "tasks"],
        "properties": {
            "status": {"const": "ok"},
            "ok": {"const": true},
            "tasks": {"type": "array", "items": {"$ref": "#/components/schemas/Task"}},
        },
    });
    let limit = json!({"type": "integer", "minimum": 1, "maximum": 500, "default": 50});
    json!({
        "operationId": "tasks",
        "summary": "The reads of a sync, newest first",
        "parameters": [id("syncId", "The sync."), query("limit", false, "At most so many.", &limit)],
        "responses": with_errors(json_answer("The tasks.", &schema), &["500"]),
    })
}

fn task() -> Value {
    let schema = json!({
        "type": "object",
        "required": ["status", "ok", "task"],
        "properties": {
            "status": {"const": "ok"},
            "ok": {"const": true},
            "task": {"$ref": "#/components/schemas/Task"},
        },
    });
    let logs = json!({"type": "integer", "minimum": 0, "maximum": 1000, "default": 100});
    json!({
        "operationId": "task",
        "summary": "A read with its streams and last log lines",
        "parameters": [
            {"name": "taskId", "in": "path", "required": true, "description": "The task.", "schema": id_schema()},
            query("logs", false, "At most so many log lines.", &logs),
        ],
        "responses": with_errors(json_answer("The task.", &schema), &["404", "500"]),
    })
}

fn health(description: &str) -> Value {
    json!({
        "description": description,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}},
    })
}

/// An endpoint that asks for no token.
fn open(name: &str, summary: &str, answers: Value) -> Value {
    let mut responses = with_errors(answers, &[]);
    responses.as_object_mut().expect("an object").remove("401");
    json!({"operationId": name, "summary": summary, "security": [], "responses": responses})
}

fn metrics() -> Value {
    let text = json!({"application/openmetrics-text": {"schema": {"type": "string"}}});
    json!({
        "operationId": "metrics",
        "summary": "What is counted, for Prometheus",
        "responses": with_errors(json!({"200": {"description": "OpenMetrics text.", "content": text}}), &[]),
    })
}

fn openapi() -> Value {
    json!({
        "operationId": "openapi",
        "summary": "This document",
        "responses": with_errors(json_answer("OpenAPI 3.1.", &json!({"type": "object"})), &[]),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::task::ReadOptions;

    #[test]
    fn every_option_of_a_read_is_a_parameter() {
        let options = ReadOptions { silence_seconds: Some(1), max_records: Some(1), ..ReadOptions::default() };
        let options = serde_json::to_value(options).expect("plain fields");
        let options: BTreeSet<&str> = options.as_object().expect("fields").keys().map(String::as_str).collect();
        let parameters = super::document()["paths"]["/read"]["post"]["parameters"].as_array().expect("parameters");
        let parameters: BTreeSet<&str> = parameters.iter().filter_map(|parameter| parameter["name"].as_str()).collect();
        assert!(options.is_subset(&parameters), "{options:?} {parameters:?}");
    }
}
