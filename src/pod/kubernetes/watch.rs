//! Watching all Pods of ours: a watch for speed, and a list at each resync for what it missed.
//!
//! Thousands of Pods may be alive: no copy of a Pod is kept, but who it is and its version. Versions are compared as
//! numbers, which is what they are in every API server there is; with them nothing older is told after something newer,
//! whichever way it came.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::api::{Api, ours};
use super::changes::{Change, Changes};
use super::lean::LeanPod;
use crate::pod::{Event, Owned, PodError};
use crate::retry::Backoff;

/// Pods of one page of a list: as text and as objects they take tens of kilobytes each.
const PAGE: u32 = 50;
/// Entries of one page of the list that repairs: only metadata, and of that only names and versions are kept.
const INDEX_PAGE: u32 = 250;
/// A watch may be this much behind a list before something counts as missed.
const LAG: Duration = Duration::from_millis(300);
/// So many Pods are read one by one; for more all are listed again.
const MOST_READS: usize = 64;
/// An index page that takes longer comes through a dead connection; the next one is asked for through another.
const INDEX_CALL: Duration = Duration::from_secs(10);
/// Delays after a failed list: an API server that is back is noticed within the longest.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));

pub(super) type Tell = Box<dyn Fn(Event) + Send>;

/// Watches until it is dropped.
pub struct Watch {
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(runtime: &Runtime, api: Api, resync: Duration, tell: Tell) -> Self {
        let mut watcher = Watcher { api, tell, told: Told::default(), listed: 0 };
        Self { task: runtime.spawn(async move { watcher.run(resync).await }) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher {
    api: Api,
    tell: Tell,
    told: Told,
    /// The version of the last list of all.
    listed: u64,
}

/// What a repair found.
enum Repair {
    /// The watch misses nothing.
    Whole,
    /// The watch had missed something: one from this version on tells the rest.
    Behind(u64),
    /// It had missed so much that listing all Pods again is cheaper.
    Hopeless,
}

impl Watcher {
    async fn run(&mut self, resync: Duration) {
        let mut backoff = RETRY;
        loop {
            match self.list().await {
                Ok(version) => {
                    backoff.reset();
                    self.follow(version, resync).await;
                }
                Err(error) => {
                    (self.tell)(Event::Failed(error));
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Tells what there is, and what is not there any more. The version from which on a watch goes on.
    async fn list(&mut self) -> Result<u64, PodError> {
        let mut params = ours().limit(PAGE);
        let mut there = HashSet::new();
        loop {
            let page = self.api.call("listing pods", self.api.lean_pods.list(&params)).await?;
            for LeanPod(pod) in page.items {
                let version = version(pod.metadata.resource_version.as_deref());
                let pod = Owned::of_pod(&pod);
                there.insert(pod.uid.clone());
                self.seen(pod, version);
            }
            if let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) {
                params = params.continue_token(&token);
                continue;
            }
            for (name, uid) in self.told.without(|known| there.contains(&known.uid)) {
                (self.tell)(Event::Gone { name, uid });
            }
            (self.tell)(Event::Listed);
            self.listed = version(page.metadata.resource_version.as_deref());
            return Ok(self.listed);
        }
    }

    /// Watches and repairs, until all Pods have to be listed again.
    async fn follow(&mut self, from: u64, resync: Duration) {
        let mut changes = Changes::start(self.api.clone(), from);
        let mut ticks = tokio::time::interval_at(Instant::now() + resync, resync);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let api = self.api.clone();
        let mut index: Option<BoxFuture<'_, Result<Index, PodError>>> = None;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Change::Applied(pod, version) => self.seen(*pod, version),
                    Change::Deleted { name, uid } => self.gone(&name, uid),
                    Change::Failed(error) => (self.tell)(Event::Failed(error)),
                    Change::Expired => return,
                },
                _ = ticks.tick(), if index.is_none() => index = Some(list_index(&api).boxed()),
                listed = async { index.as_mut().expect("it is some").await }, if index.is_some() => {
                    index = None;
                    let repaired = match listed {
                        Ok(index) => self.repair(&index).await,
                        Err(error) => Err(error),
                    };
                    match repaired {
                        Ok(Repair::Whole) => (self.tell)(Event::Listed),
                        Ok(Repair::Behind(version)) => {
                            // What it missed once it may miss again: its connection may be dead.
                            changes = Changes::start(api.clone(), version);
                            (self.tell)(Event::Listed);
                        }
                        Ok(Repair::Hopeless) => return,
                        Err(error) => (self.tell)(Event::Failed(error)),
                    }
                }
            }
        }
    }

    /// Tells what the watch has not told, although there was time for it.
    async fn repair(&mut self, index: &Index) -> Result<Repair, PodError> {
        if index.version < self.listed {
            // Time has gone backwards: the API server's data were restored, and no version says anything any more.
            self.told.distrust();
            return Ok(Repair::Hopeless);
        }
        let changed = self.told.behind(index);
        if changed.len() > MOST_READS {
            return Ok(Repair::Hopeless);
        }
        let gone = self.told.vanished(index);
        let mut missed = !gone.is_empty();
        for (name, uid) in gone {
            (self.tell)(Event::Gone { name, uid });
        }
        for name in changed {
            // One that is gone by now is told by the watch.
            if let Some(pod) = self.api.pod(name).await? {
                missed |= self.told.is_news(name, version(pod.metadata.resource_version.as_deref()));
                self.seen(Owned::of_pod(&pod), version(pod.metadata.resource_version.as_deref()));
            }
        }
        Ok(if missed { Repair::Behind(index.version) } else { Repair::Whole })
    }

    fn seen(&mut self, pod: Owned, version: u64) {
        if !self.told.is_news(&pod.name, version) {
            return;
        }
        if let Some(uid) = self.told.keep(&pod.name, &pod.uid, version) {
            (self.tell)(Event::Gone { name: pod.name.clone(), uid });
        }
        (self.tell)(Event::Seen(Box::new(pod)));
    }

    fn gone(&mut self, name: &str, uid: String) {
        if self.told.forget(name, &uid) {
            (self.tell)(Event::Gone { name: name.to_owned(), uid });
        }
    }
}

/// What was told of Pods that are there, by name.
#[derive(Default)]
struct Told {
    pods: HashMap<String, Known>,
}

/// Who a Pod is, and which version of it was told.
struct Known {
    uid: String,
    version: u64,
}

impl Told {
    /// Whether a version of a Pod is newer than all that was told of its name.
    fn is_news(&self, name: &str, version: u64) -> bool {
        self.pods.get(name).is_none_or(|known| known.version < version)
    }

    /// Keeps what is told now. Returns the uid of the Pod of that name that was there before.
    fn keep(&mut self, name: &str, uid: &str, version: u64) -> Option<String> {
        if let Some(known) = self.pods.get_mut(name) {
            known.version = version;
            return (known.uid != uid).then(|| std::mem::replace(&mut known.uid, uid.to_owned()));
        }
        self.pods.insert(name.to_owned(), Known { uid: uid.to_owned(), version });
        None
    }

    /// Whether this very Pod was there.
    fn forget(&mut self, name: &str, uid: &str) -> bool {
        let known = self.pods.get(name).is_some_and(|known| known.uid == uid);
        if known {
            self.pods.remove(name);
        }
        known
    }

    /// Removes and returns (name, uid) of all but those to keep.
    fn without(&mut self, keep: impl Fn(&Known) -> bool) -> Vec<(String, String)> {
        self.pods.extract_if(|_, known| !keep(known)).map(|(name, known)| (name, known.uid)).collect()
    }

    /// Removes and returns what an index does not have any more. What is newer than the index is not in it either.
    fn vanished(&mut self, index: &Index) -> Vec<(String, String)> {
        let there: HashSet<&str> = index.entries.iter().map(|entry| entry.uid.as_str()).collect();
        self.without(|known| known.version > index.version || there.contains(known.uid.as_str()))
    }

    /// Whatever comes next is news.
    fn distrust(&mut self) {
        for known in self.pods.values_mut() {
            known.version = 0;
        }
    }

    /// The names of what an index has in a newer version.
    fn behind<'a>(&self, index: &'a Index) -> Vec<&'a str> {
        let entries = index.entries.iter().filter(|entry| self.is_news(&entry.name, entry.version));
        entries.map(|entry| entry.name.as_str()).collect()
    }
}

/// A version as a number. One that is none is older than everything.
pub(super) fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// All Pods at one moment, as far as it takes to see what was missed.
#[derive(Default)]
struct Index {
    version: u64,
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    uid: String,
    version: u64,
}

/// What is read of a page of metadata; everything else is skipped.
#[derive(Deserialize)]
struct IndexPage {
    metadata: PageMetadata,
    /// `null` in what older API servers answer when there is nothing.
    #[serde(default)]
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMetadata {
    name: String,
    uid: String,
    resource_version: Option<String>,
}

/// Lists names and versions, and then gives the watch the time to tell what it is just telling.
async fn list_index(api: &Api) -> Result<Index, PodError> {
    let request = kube::core::Request::new(Pod::url_path(&(), Some(&api.namespace)));
    let mut params = ours().limit(INDEX_PAGE);
    let mut index = Index::default();
    loop {
        let page = async {
            let request = request.list_metadata(&params).map_err(kube::Error::BuildRequest)?;
            api.client.request::<IndexPage>(request).await
        };
        let page = api.call_within("listing pods", INDEX_CALL, page).await?;
        index.entries.extend(page.items.into_iter().flatten().map(|Item { metadata }| Entry {
            version: version(metadata.resource_version.as_deref()),
            name: metadata.name,
            uid: metadata.uid,
        }));
        index.version = version(page.metadata.resource_version.as_deref());
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    tokio::time::sleep(LAG).await;
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Index, IndexPage, Told};

    #[test]
    fn nothing_older_is_told_after_something_newer() {
        let mut told = Told::default();
        assert!(told.is_news("p", 5));
        assert_eq!(told.keep("p", "first", 5), None);
        assert!(!told.is_news("p", 5) && !told.is_news("p", 4));
        // Deleted and made again: the first one's end is told once, and not again when the watch comes to it.
        assert_eq!(told.keep("p", "second", 9), Some("first".to_owned()));
        assert!(!told.forget("p", "first"));
        assert!(!told.is_news("p", 7));
        assert!(told.forget("p", "second"));
        assert!(!told.forget("p", "second"));
    }

    #[test]
    fn an_index_shows_what_the_watch_has_missed_and_not_what_it_knows_better() {
        let mut told = Told::default();
        for (name, version) in [("same", 3), ("changed", 3), ("ahead", 12), ("vanished", 3), ("new", 11)] {
            told.keep(name, name, version);
        }
        let entry = |name: &str, version| Entry { name: name.to_owned(), uid: name.to_owned(), version };
        let entries = vec![entry("same", 3), entry("changed", 7), entry("ahead", 9), entry("unknown", 8)];
        let index = Index { version: 10, entries };
        assert_eq!(told.behind(&index), ["changed", "unknown"]);
        assert_eq!(told.vanished(&index), [("vanished".to_owned(), "vanished".to_owned())]);
        told.distrust();
        assert_eq!(told.behind(&index).len(), 4);
    }

    #[test]
    fn an_empty_page_may_have_no_list() {
        for text in [r#"{"metadata":{},"items":null}"#, r#"{"metadata":{}}"#, r#"{"metadata":{},"items":[]}"#] {
            let page: IndexPage = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(page.items.is_none_or(|items| items.is_empty()), "{text}");
        }
    }
}
