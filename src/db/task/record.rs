//! Which request started a task: in the own schema, since the console replaces `started_by`; without it, as a member of
//! `started_by`.

use serde_json::{Map, Value, json};

use crate::db::own_tables::TASK;
use crate::db::pool::{Attempt, Transaction, text};
use crate::db::text::quote_literal;
use crate::task::{Task, TaskKind};

/// Identifies a request among those with the same task id, and the installation that accepted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestMark {
    /// A hash of the request.
    pub fingerprint: String,
    /// The installation that has accepted it: several may share a database.
    pub installation: String,
}

impl RequestMark {
    /// Of a task that no request repeats. The process of a one-off command takes the place of the installation.
    pub fn accepted_by(installation: &str) -> Self {
        Self { fingerprint: String::new(), installation: installation.to_owned() }
    }
}

/// The member of `started_by`.
const MEMBER: &str = "syncctl";

/// Stores the request of a task that has just been accepted.
pub(in crate::db) fn store(tx: &mut Transaction<'_>, task: &Task, mark: Option<&RequestMark>) -> Attempt<()> {
    let Some(own) = tx.own else { return Ok(()) };
    let kind = task.kind.as_str();
    let (request, installation) = (mark.map(|mark| &mark.fingerprint), mark.map(|mark| &mark.installation));
    let sql = format!(
        "INSERT INTO {} (results_schema, task_id, sync_id, kind, package, version, connector_type, request, installation)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (results_schema, task_id) DO UPDATE SET sync_id = excluded.sync_id, kind = excluded.kind,
           package = excluded.package, version = excluded.version, connector_type = excluded.connector_type,
           request = excluded.request, installation = excluded.installation",
        own.table(TASK)
    );
    let params = [
        text(&own.results_schema),
        text(&task.task_id),
        text(&task.sync_id),
        text(&kind),
        text(&task.image.package),
        text(&task.image.version),
        text(&task.connector_type),
        text(&request),
        text(&installation),
    ];
    Ok(_ = tx.execute(&sql, &params)?)
}

/// The last request that was accepted for a task.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Its fingerprint, where that is known.
    pub(super) request: Option<String>,
    /// It was a discover, which a read under the same id follows.
    pub(super) is_discover: bool,
}

/// The last request that was accepted for a task, as far as it is known.
pub(super) fn accepted(tx: &mut Transaction<'_>, task_id: &str, started_by: Option<&str>) -> Attempt<Accepted> {
    let is_discover = |kind: Option<&str>| kind == Some(TaskKind::Discover.as_str());
    if let Some(own) = tx.own {
        let sql = format!("SELECT request, kind FROM {} WHERE results_schema = $1 AND task_id = $2", own.table(TASK));
        let stored = tx.row(&sql, &[text(&own.results_schema), text(&task_id)], |row| {
            Ok(Accepted { request: row.try_get(0)?, is_discover: is_discover(row.try_get(1)?) })
        })?;
        if let Some(accepted) = stored {
            return Ok(accepted);
        }
    }
    // Of an earlier version, or of a process without the own schema.
    let started_by: Option<Value> = started_by.and_then(|text| serde_json::from_str(text).ok());
    let member = started_by.as_ref().and_then(|value| value.get(MEMBER));
    let field = |name: &str| member.and_then(|member| member.get(name)?.as_str());
    Ok(Accepted { request: field("request").map(str::to_owned), is_discover: is_discover(field("kind")) })
}

/// `started_by` of the row: the caller's, and the request where only this column can hold it.
pub(super) fn started_by(tx: &Transaction<'_>, task: &Task, mark: Option<&RequestMark>) -> Option<Value> {
    let given = task.started_by.clone();
    let Some(mark) = mark else { return given };
    let mut fields = match given {
        Some(Value::Object(fields)) => fields,
        None | Some(Value::Null) => Map::from_iter([("type".to_owned(), json!("api"))]),
        Some(other) => Map::from_iter([("type".to_owned(), json!("api")), ("value".to_owned(), other)]),
    };
    if tx.own.is_none() {
        let mut request = json!({"request": mark.fingerprint, "fleet": mark.installation});
        if task.kind == TaskKind::Discover {
            request["kind"] = json!(task.kind);
        }
        fields.insert(MEMBER.to_owned(), request);
    }
    Some(Value::Object(fields))
}

/// The condition that a row of `source_task` was accepted by the installation in a parameter.
pub(super) fn accepted_sql(tx: &Transaction<'_>, parameter: &str) -> String {
    let by_member = format!("started_by -> '{MEMBER}' ->> 'fleet' = {parameter}");
    let Some(own) = tx.own else { return by_member };
    let (table, schema) = (own.table(TASK), quote_literal(&own.results_schema));
    format!(
        "({by_member} OR EXISTS (SELECT FROM {table} AS own
          WHERE own.results_schema = {schema} AND own.task_id = source_task.task_id AND own.installation = {parameter}))"
    )
}
