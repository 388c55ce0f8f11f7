//! Watching Pods: the API server's watch for speed, and a list at each resync for what the watch missed.
//!
//! Thousands of Pods may be alive: of each only name, uid and version are stored. Versions are compared as numbers, which
//! they are in every existing API server; so nothing older is reported after something newer, whichever source it comes
//! from.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::client::{Api, CALL_TIMEOUT, Listing, labelled, version};
use super::partial::PartialPod;
use crate::pod::{Callback, PodError, PodEvent, Scope, TaskPod};
use crate::retry::Backoff;

/// Pods on one page of a list: as text and as objects they take tens of kilobytes each.
const PAGE: u32 = 50;
/// Entries on one page of the list that repairs: only names and versions are stored.
const INDEX_PAGE: u32 = 250;
/// The watch may be this much behind a list before a change counts as missed.
const LAG: Duration = Duration::from_millis(300);
/// At most this many Pods are read one by one; for more all are listed again.
const MAX_READS: usize = 64;
/// An index page that takes longer comes through a dead connection; the next one uses another.
const INDEX_TIMEOUT: Duration = Duration::from_secs(10);
/// Delays after a failed list: an API server that is back is noticed within the longest.
const LIST_RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
/// Delays after a failed watch.
const WATCH_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// The API server ends a watch after this time. Below the five minutes after which many load balancers cut it.
const WATCH_SECONDS: u32 = 280;
/// A watch that has not ended by then is dead: the client would wait for ever.
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// A watch that ends sooner counts as failed.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Watches until it is dropped.
pub(super) struct Watch {
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts to watch the Pods of a scope.
pub(super) fn start(
    runtime: &Runtime,
    api: Api,
    scope: Scope<'_>,
    resync: Duration,
    on_event: Callback<PodEvent>,
) -> Watch {
    let mut known = KnownPods::default();
    let selector = match scope {
        Scope::All => labelled(),
        Scope::Pod(pod) => {
            known.insert(&pod.name, &pod.uid, 0);
            ListParams::default().fields(&format!("metadata.name={}", pod.name))
        }
    };
    let mut watcher = Watcher { api, selector, on_event, known, listed: 0 };
    Watch { task: runtime.spawn(async move { watcher.run(resync).await }) }
}

struct Watcher {
    api: Api,
    selector: ListParams,
    on_event: Callback<PodEvent>,
    known: KnownPods,
    /// The version of the last full list.
    listed: u64,
}

/// The result of comparing with an index.
enum Repair {
    /// The watch missed nothing.
    Complete,
    /// The watch missed changes, which are reported now; a new one must start at this version.
    Behind(u64),
    /// The watch missed so much that listing all Pods again is cheaper.
    TooMany,
}

impl Watcher {
    async fn run(&mut self, resync: Duration) {
        let mut backoff = LIST_RETRY;
        loop {
            match self.list().await {
                Ok(version) => {
                    backoff.reset();
                    self.follow(version, resync).await;
                }
                Err(error) => {
                    (self.on_event)(PodEvent::Failed(error));
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Reports what exists and what no longer does. Returns the version at which a watch continues.
    async fn list(&mut self) -> Result<u64, PodError> {
        let mut uids = HashSet::new();
        let api = self.api.clone();
        let params = self.selector.clone().limit(PAGE);
        let listing = Listing { params, metadata_only: false, timeout: CALL_TIMEOUT };
        let version = api
            .list("list pods", &api.pod_requests, listing, |PartialPod(pod)| {
                let version = version(pod.metadata.resource_version.as_deref());
                let pod = TaskPod::of(&pod);
                uids.insert(pod.id.uid.clone());
                self.updated(pod, version);
            })
            .await?;
        for (name, uid) in self.known.remove_unless(|known| uids.contains(&known.uid)) {
            (self.on_event)(PodEvent::Deleted { name, uid });
        }
        (self.on_event)(PodEvent::Synced);
        self.listed = version;
        Ok(version)
    }

    /// Watches and repairs until all Pods must be listed again.
    async fn follow(&mut self, from: u64, resync: Duration) {
        let api = self.api.clone();
        let mut changes = changes(api.clone(), &self.selector, from);
        let mut ticks = tokio::time::interval_at(Instant::now() + resync, resync);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut index: Option<BoxFuture<'_, Result<Index, PodError>>> = None;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Change::Updated(pod, version)) => self.updated(*pod, version),
                    Some(Change::Deleted { name, uid }) => {
                        if self.known.remove(&name, &uid) {
                            (self.on_event)(PodEvent::Deleted { name, uid });
                        }
                    }
                    Some(Change::Failed(error)) => (self.on_event)(PodEvent::Failed(error)),
                    Some(Change::Expired) | None => return,
                },
                _ = ticks.tick(), if index.is_none() => {
                    index = Some(list_index(&api, self.selector.clone()).boxed());
                }
                listed = async { index.as_mut().expect("it is some").await }, if index.is_some() => {
                    index = None;
                    let repaired = match listed {
                        Ok(index) => self.repair(&index).await,
                        Err(error) => Err(error),
                    };
                    match repaired {
                        Ok(Repair::Complete) => (self.on_event)(PodEvent::Synced),
                        Ok(Repair::Behind(version)) => {
                            // The connection of the old one may be dead.
                            changes = self::changes(api.clone(), &self.selector, version);
                            (self.on_event)(PodEvent::Synced);
                        }
                        Ok(Repair::TooMany) => return,
                        Err(error) => (self.on_event)(PodEvent::Failed(error)),
                    }
                }
            }
        }
    }

    /// Reports what the watch has not reported although it had the time to.
    async fn repair(&mut self, index: &Index) -> Result<Repair, PodError> {
        if index.version < self.listed {
            // The API server's data were restored from a backup: known versions mean nothing any more.
            self.known.forget_versions();
            return Ok(Repair::TooMany);
        }
        let outdated = self.known.outdated(index);
        if outdated.len() > MAX_READS {
            return Ok(Repair::TooMany);
        }
        let deleted = self.known.remove_missing(index);
        let mut missed = !deleted.is_empty();
        for (name, uid) in deleted {
            (self.on_event)(PodEvent::Deleted { name, uid });
        }
        for name in outdated {
            // The watch reports one that was deleted meanwhile.
            if let Some(pod) = self.api.get_pod(name).await? {
                let version = version(pod.metadata.resource_version.as_deref());
                missed |= self.known.is_newer(name, version);
                self.updated(TaskPod::of(&pod), version);
            }
        }
        Ok(if missed { Repair::Behind(index.version) } else { Repair::Complete })
    }

    fn updated(&mut self, pod: TaskPod, version: u64) {
        if !self.known.is_newer(&pod.id.name, version) {
            return;
        }
        if let Some(uid) = self.known.insert(&pod.id.name, &pod.id.uid, version) {
            (self.on_event)(PodEvent::Deleted { name: pod.id.name.clone(), uid });
        }
        (self.on_event)(PodEvent::Updated(Box::new(pod)));
    }
}

/// A change as the API server streams it.
pub(super) enum Change {
    /// A Pod is new or has changed; with its version.
    Updated(Box<TaskPod>, u64),
    /// A Pod was deleted.
    Deleted { name: String, uid: String },
    /// The watch could not be opened or broke off, and is opened again. Reported once until a watch works again.
    Failed(PodError),
    /// The API server no longer knows the version to continue from: no further change comes.
    Expired,
}

/// All changes after a version: opens a watch, and another one where the last one ended.
pub(super) fn changes(api: Api, selector: &ListParams, version: u64) -> BoxStream<'static, Change> {
    let params = WatchParams {
        label_selector: selector.label_selector.clone(),
        field_selector: selector.field_selector.clone(),
        ..WatchParams::default().timeout(WATCH_SECONDS)
    };
    let changes = Changes { api, params, version, open: None, backoff: WATCH_RETRY, is_first: true, is_failing: false };
    stream::unfold(changes, |mut changes| async move { Some((changes.next().await, changes)) }).boxed()
}

struct Changes {
    api: Api,
    params: WatchParams,
    /// The last version that was seen.
    version: u64,
    open: Option<OpenWatch>,
    backoff: Backoff,
    is_first: bool,
    is_failing: bool,
}

struct OpenWatch {
    events: BoxStream<'static, kube::Result<WatchEvent<PartialPod>>>,
    opened: Instant,
}

impl Changes {
    async fn next(&mut self) -> Change {
        loop {
            let event = match &mut self.open {
                Some(open) => tokio::time::timeout_at(open.opened + WATCH_TIMEOUT, open.events.next()).await,
                None => match self.open().await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => Ok(Some(Err(error))),
                    Err(error) => match self.failed(error) {
                        Some(change) => return change,
                        None => continue,
                    },
                },
            };
            let error = match event {
                Ok(Some(Ok(WatchEvent::Added(PartialPod(pod)) | WatchEvent::Modified(PartialPod(pod))))) => {
                    self.version = version(pod.metadata.resource_version.as_deref());
                    return Change::Updated(Box::new(TaskPod::of(&pod)), self.version);
                }
                Ok(Some(Ok(WatchEvent::Deleted(PartialPod(pod))))) => {
                    self.version = version(pod.metadata.resource_version.as_deref());
                    let (name, uid) = (pod.metadata.name.unwrap_or_default(), pod.metadata.uid.unwrap_or_default());
                    return Change::Deleted { name, uid };
                }
                Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                    self.version = version(Some(&bookmark.metadata.resource_version));
                    continue;
                }
                Ok(Some(Ok(WatchEvent::Error(status)))) => kube::Error::Api(status),
                Ok(Some(Err(error))) => error,
                // It ended in order, or its connection was cut.
                Ok(None) | Err(_) => {
                    self.close();
                    continue;
                }
            };
            if matches!(&error, kube::Error::Api(status) if status.code == 410) {
                return Change::Expired;
            }
            let error = self.api.explain("watch pods", &error);
            if let Some(change) = self.failed(error) {
                return change;
            }
        }
    }

    /// Opens a watch. The inner error is the API server's answer, which may also say that the version has expired.
    async fn open(&mut self) -> Result<kube::Result<()>, PodError> {
        if !std::mem::take(&mut self.is_first) {
            tokio::time::sleep(self.backoff.next_delay()).await;
        }
        let request = self.api.pod_requests.watch(&self.params, &self.version.to_string());
        let opening = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            // An error here is an answer, and no failure of the call.
            Ok(self.api.client.request_events(request).await.map(StreamExt::boxed))
        };
        let opened = self.api.call("watch pods", opening).await?;
        Ok(opened.map(|events| self.open = Some(OpenWatch { events, opened: Instant::now() })))
    }

    fn failed(&mut self, error: PodError) -> Option<Change> {
        self.close();
        let is_news = !std::mem::replace(&mut self.is_failing, true);
        is_news.then_some(Change::Failed(error))
    }

    fn close(&mut self) {
        if self.open.take().is_some_and(|open| open.opened.elapsed() > SHORT_WATCH) {
            self.backoff.reset();
            self.is_failing = false;
        }
    }
}

/// What was reported of the Pods that exist, by name.
#[derive(Default)]
struct KnownPods {
    pods: HashMap<String, Known>,
}

struct Known {
    uid: String,
    version: u64,
}

impl KnownPods {
    /// Whether a version of a Pod is newer than everything reported under its name.
    fn is_newer(&self, name: &str, version: u64) -> bool {
        self.pods.get(name).is_none_or(|known| known.version < version)
    }

    /// Returns the uid of the Pod of this name that it replaces.
    fn insert(&mut self, name: &str, uid: &str, version: u64) -> Option<String> {
        if let Some(known) = self.pods.get_mut(name) {
            known.version = version;
            return (known.uid != uid).then(|| std::mem::replace(&mut known.uid, uid.to_owned()));
        }
        self.pods.insert(name.to_owned(), Known { uid: uid.to_owned(), version });
        None
    }

    /// Returns whether this very Pod was known.
    fn remove(&mut self, name: &str, uid: &str) -> bool {
        let is_known = self.pods.get(name).is_some_and(|known| known.uid == uid);
        if is_known {
            self.pods.remove(name);
        }
        is_known
    }

    /// Removes and returns (name, uid) of all Pods but those to keep.
    fn remove_unless(&mut self, keep: impl Fn(&Known) -> bool) -> Vec<(String, String)> {
        self.pods.extract_if(|_, known| !keep(known)).map(|(name, known)| (name, known.uid)).collect()
    }

    /// Removes and returns the Pods that an index no longer has. A Pod that is newer than the index stays.
    fn remove_missing(&mut self, index: &Index) -> Vec<(String, String)> {
        let uids: HashSet<&str> = index.entries.iter().map(|entry| entry.uid.as_str()).collect();
        self.remove_unless(|known| known.version > index.version || uids.contains(known.uid.as_str()))
    }

    /// Makes every version newer than the known ones.
    fn forget_versions(&mut self) {
        for known in self.pods.values_mut() {
            known.version = 0;
        }
    }

    /// The names of the Pods that an index has in a newer version.
    fn outdated<'a>(&self, index: &'a Index) -> Vec<&'a str> {
        let entries = index.entries.iter().filter(|entry| self.is_newer(&entry.name, entry.version()));
        entries.map(|entry| entry.name.as_str()).collect()
    }
}

/// Names and versions of all Pods at one moment: enough to see what was missed.
struct Index {
    version: u64,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    uid: String,
    resource_version: Option<String>,
}

impl Entry {
    fn version(&self) -> u64 {
        version(self.resource_version.as_deref())
    }
}

#[derive(Deserialize)]
struct IndexItem {
    metadata: Entry,
}

/// Lists names and versions, then gives the watch the time to report the latest changes.
async fn list_index(api: &Api, selector: ListParams) -> Result<Index, PodError> {
    let mut entries = Vec::new();
    let listing = Listing { params: selector.limit(INDEX_PAGE), metadata_only: true, timeout: INDEX_TIMEOUT };
    let each = |item: IndexItem| entries.push(item.metadata);
    let version = api.list("list pods", &api.pod_requests, listing, each).await?;
    tokio::time::sleep(LAG).await;
    Ok(Index { version, entries })
}

#[cfg(test)]
mod tests {
    use super::{Entry, Index, KnownPods};

    #[test]
    fn an_older_version_is_not_reported_after_a_newer_one() {
        let mut known = KnownPods::default();
        assert!(known.is_newer("p", 5));
        assert_eq!(known.insert("p", "first", 5), None);
        assert!(!known.is_newer("p", 5) && !known.is_newer("p", 4));
        // Deleted and created again: the end of the first one is reported once, not again when the watch gets there.
        assert_eq!(known.insert("p", "second", 9), Some("first".to_owned()));
        assert!(!known.remove("p", "first"));
        assert!(!known.is_newer("p", 7));
        assert!(known.remove("p", "second"));
        assert!(!known.remove("p", "second"));
    }

    #[test]
    fn an_index_shows_what_the_watch_missed_but_not_what_the_watch_has_newer() {
        let mut known = KnownPods::default();
        for (name, version) in [("same", 3), ("changed", 3), ("ahead", 12), ("vanished", 3), ("new", 11)] {
            known.insert(name, name, version);
        }
        let entry = |name: &str, version: u64| {
            let resource_version = Some(version.to_string());
            Entry { name: name.to_owned(), uid: name.to_owned(), resource_version }
        };
        let entries = vec![entry("same", 3), entry("changed", 7), entry("ahead", 9), entry("unknown", 8)];
        let index = Index { version: 10, entries };
        assert_eq!(known.outdated(&index), ["changed", "unknown"]);
        assert_eq!(known.remove_missing(&index), [("vanished".to_owned(), "vanished".to_owned())]);
        known.forget_versions();
        assert_eq!(known.outdated(&index).len(), 4);
    }
}
