//! Who sends a request, and what that caller may do.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::named::NamedToken;
use super::verb::Verb;
use crate::pattern::list;
use crate::task::{Image, TOKEN, Task, TaskKind};

/// A violated rule of a token, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial(pub String);

/// The sender of an admitted request, as its token shows. The default one has no name and all rights: its token is one of
/// SYNCCTL_AUTH_TOKENS, or none is needed.
#[derive(Clone, Default)]
pub struct Caller(Option<Arc<NamedToken>>);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.name()).finish()
    }
}

impl PartialEq for Caller {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Caller {}

impl From<Arc<NamedToken>> for Caller {
    fn from(token: Arc<NamedToken>) -> Self {
        Self(Some(token))
    }
}

/// Members of `started_by` that only this program writes.
const RESERVED: [&str; 2] = [TOKEN, "syncctl"];
/// Holds what a caller has put into them.
const GIVEN: &str = "given";

impl Caller {
    /// The name of its token.
    pub fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|token| token.name.as_str())
    }

    /// Counts a request; the error is the number of seconds after which it would be within the limit.
    pub fn count_request(&self) -> Result<(), u64> {
        self.0.as_ref().map_or(Ok(()), |token| token.count_request())
    }

    /// How many of its tasks may run at a time.
    pub fn max_tasks(&self) -> Option<u32> {
        self.0.as_ref().and_then(|token| token.max_tasks)
    }

    /// Whether some tasks are not for this caller to see.
    pub fn is_limited(&self) -> bool {
        self.0.as_ref().is_some_and(|token| token.has_patterns())
    }

    /// Checks that it may use an endpoint.
    pub fn check_verb(&self, verb: Verb) -> Result<(), Denial> {
        match &self.0 {
            Some(token) if !token.allows(verb) => {
                let verbs = token.verbs.as_deref().map_or_else(|| "all but metrics".to_owned(), list);
                Err(Denial(format!("token {:?} may not {verb}: its verbs are {verbs}", token.name)))
            }
            _ => Ok(()),
        }
    }

    /// Checks that it may start a task with its image, sync and storage key.
    pub fn check_task(&self, task: &Task) -> Result<(), Denial> {
        self.check_verb(task.kind.into())?;
        if task.then_run.is_some() {
            // A read follows.
            self.check_verb(Verb::Read)?;
        }
        let Some(token) = &self.0 else { return Ok(()) };
        token.check_image(&task.image).map_err(Denial)?;
        if !task.sync_id.is_empty() {
            self.check_sync(&task.sync_id)?;
        }
        if matches!(task.kind, TaskKind::Check | TaskKind::Discover) {
            token.check_storage_key(&task.storage_key).map_err(Denial)?;
        }
        Ok(())
    }

    /// Checks that it may name a sync.
    pub fn check_sync(&self, sync_id: &str) -> Result<(), Denial> {
        self.0.as_ref().map_or(Ok(()), |token| token.check_sync(sync_id).map_err(Denial))
    }

    /// Whether a stored read is one that it may see and cancel.
    pub fn sees(&self, sync_id: &str, package: &str, version: &str) -> bool {
        let Some(token) = &self.0 else { return true };
        let image = Image { package: package.to_owned(), version: version.to_owned() };
        token.check_sync(sync_id).and_then(|()| token.check_image(&image)).is_ok()
    }

    /// Whether a task of any kind is one that it may cancel. A specification has neither sync nor storage key: it belongs to
    /// the token that asked for it.
    pub fn owns(&self, task: &Task) -> bool {
        let Some(token) = self.0.as_ref().filter(|_| self.is_limited()) else { return true };
        let is_own = || task.started_by.as_ref().is_some_and(|started_by| started_by[TOKEN] == token.name.as_str());
        let has_scope = match (task.sync_id.as_str(), task.storage_key.as_str()) {
            ("", "") => is_own(),
            ("", key) => token.check_storage_key(key).is_ok(),
            (sync_id, "") => token.check_sync(sync_id).is_ok(),
            (sync_id, key) => token.check_sync(sync_id).is_ok() && token.check_storage_key(key).is_ok(),
        };
        has_scope && token.check_image(&task.image).is_ok()
    }

    /// What a task stores as `started_by`: what the caller gives, and the name of its token. What the caller gives under the
    /// names of our members is kept aside, so that no caller can name another token.
    pub fn started_by(&self, given: Option<Value>) -> Option<Value> {
        let mut fields = match given {
            Some(Value::Object(fields)) => fields,
            None | Some(Value::Null) if self.0.is_none() => return None,
            None | Some(Value::Null) => Map::from_iter([("type".to_owned(), json!("api"))]),
            // Stored as it is.
            Some(other) if self.0.is_none() => return Some(other),
            Some(other) => Map::from_iter([("type".to_owned(), json!("api")), ("value".to_owned(), other)]),
        };
        let mut aside: Map<String, Value> = fields
            .iter()
            .filter(|(name, _)| RESERVED.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !aside.is_empty() {
            fields.retain(|name, _| !RESERVED.contains(&name.as_str()));
            if let Some(given) = fields.remove(GIVEN) {
                aside.insert(GIVEN.to_owned(), given);
            }
            fields.insert(GIVEN.to_owned(), Value::Object(aside));
        }
        if let Some(name) = self.name() {
            fields.insert(TOKEN.to_owned(), json!(name));
        }
        Some(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::{Caller, Verb};
    use crate::server::auth::entries;
    use crate::task::{Image, Task, TaskKind};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn caller(fields: &str) -> Caller {
        let text = format!("- name: team\n  hash: salt.{}\n{fields}", "ab".repeat(64));
        Arc::new(entries::parse(&text).expect("a token").remove(0)).into()
    }

    fn tenant() -> Caller {
        caller("  syncIds: ['a-*']\n  storageKeys: ['a-*']\n  images: ['airbyte/*']\n")
    }

    /// A task of this kind with a sync and a storage key.
    fn task(kind: TaskKind, sync_id: &str, storage_key: &str) -> Task {
        let read = Task::of_read("airbyte/x", "1", sync_id, "t", jiff::Timestamp::UNIX_EPOCH);
        Task { kind, storage_key: storage_key.to_owned(), ..read }
    }

    #[test]
    fn started_by_names_the_token_and_keeps_what_the_caller_gave() {
        let given = json!({"trigger": "scheduled", "token": "x", "syncctl": 1, "given": 2});
        let aside = json!({"trigger": "scheduled", "given": {"token": "x", "syncctl": 1, "given": 2}});
        for (label, given, of_unnamed, of_team) in [
            ("nothing", None, None, json!({"type": "api", "token": "team"})),
            ("null", Some(Value::Null), None, json!({"type": "api", "token": "team"})),
            ("no object", Some(json!("x")), Some(json!("x")), json!({"type": "api", "value": "x", "token": "team"})),
            (
                "plain",
                Some(json!({"user": "u", "given": 1})),
                Some(json!({"user": "u", "given": 1})),
                json!({"user": "u", "given": 1, "token": "team"}),
            ),
            ("forged", Some(given), Some(aside.clone()), {
                let mut named = aside.clone();
                named["token"] = json!("team");
                named
            }),
        ] {
            assert_eq!(Caller::default().started_by(given.clone()), of_unnamed, "{label}");
            assert_eq!(tenant().started_by(given), Some(of_team), "{label}");
        }
    }

    #[test]
    fn tasks_are_allowed_by_verb_sync_storage_key_and_image() {
        let then_run = Task { then_run: Some("w".to_owned()), ..task(TaskKind::Discover, "a-1", "a-k") };
        let image = Image { package: "evil/x".to_owned(), version: "1".to_owned() };
        for (label, task, expected) in [
            ("a read", task(TaskKind::Read, "a-1", ""), None),
            ("a check", task(TaskKind::Check, "", "a-k"), None),
            ("a discover", then_run.clone(), None),
            ("a spec", task(TaskKind::Spec, "", ""), None),
            ("an image", Task { image, ..task(TaskKind::Spec, "", "") }, Some("may not use the image \"evil/x:1\"")),
            ("a sync", task(TaskKind::Read, "b-1", ""), Some("may not use the sync \"b-1\": its syncIds are a-*")),
            ("a sync of a discover", task(TaskKind::Discover, "b-1", "a-k"), Some("the sync \"b-1\"")),
            ("a storage key", task(TaskKind::Check, "", "b"), Some("the storage key \"b\": its storageKeys are a-*")),
            ("no storage key", task(TaskKind::Check, "", ""), Some("the storage key \"\"")),
        ] {
            assert_eq!(Caller::default().check_task(&task), Ok(()), "{label}");
            let denial = tenant().check_task(&task).err().map(|denial| denial.0);
            assert_eq!(denial.is_some(), expected.is_some(), "{label}: {denial:?}");
            assert!(denial.unwrap_or_default().contains(expected.unwrap_or_default()), "{label}");
        }
        let discover = caller("  verbs: [discover]\n");
        assert_eq!(discover.check_task(&task(TaskKind::Discover, "x", "x")), Ok(()));
        assert!(discover.check_task(&then_run).is_err(), "a read follows");
        assert!(discover.check_task(&task(TaskKind::Check, "", "k")).is_err());
        assert!(discover.check_verb(Verb::Metrics).is_err() && tenant().check_verb(Verb::Metrics).is_err());
        assert!(caller("").check_verb(Verb::Metrics).is_ok());
    }

    #[test]
    fn a_tenant_ends_what_its_patterns_match_and_its_own_specs() {
        let spec = |token: Option<&str>| {
            let started_by = token.map(|token| json!({"token": token}));
            Task { started_by, ..task(TaskKind::Spec, "", "") }
        };
        for (label, task, expected) in [
            ("a read", task(TaskKind::Read, "a-1", ""), true),
            ("another's read", task(TaskKind::Read, "b-1", ""), false),
            ("a check", task(TaskKind::Check, "", "a-k"), true),
            ("another's check", task(TaskKind::Check, "", "b-k"), false),
            ("a discover of another's sync", task(TaskKind::Discover, "b-1", "a-k"), false),
            ("a discover under another's key", task(TaskKind::Discover, "a-1", "b-k"), false),
            ("a spec", spec(Some("team")), true),
            ("another's spec", spec(Some("other")), false),
            ("anybody's spec", spec(None), false),
        ] {
            assert_eq!(tenant().owns(&task), expected, "{label}");
            assert!(Caller::default().owns(&task), "{label}");
        }
        assert!(tenant().sees("a-1", "airbyte/x", "1"));
        assert!(!tenant().sees("b-1", "airbyte/x", "1") && !tenant().sees("a-1", "evil/x", "1"));
    }
}
