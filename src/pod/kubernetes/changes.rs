//! The changes of Pods as the API server streams them: opens a watch, and opens it again where the last one ended.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use kube::api::{WatchEvent, WatchParams};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::api::{Api, creator};
use super::lean::LeanPod;
use super::watch::version;
use crate::pod::{Owned, PodError};
use crate::retry::Backoff;

/// The API server ends a watch after so many seconds. Below five minutes, after which many load balancers cut it.
const LASTS_SECONDS: u32 = 280;
/// A watch that has not ended by then is dead: the client would wait for ever.
const OVERDUE: Duration = Duration::from_secs(LASTS_SECONDS as u64 + 10);
/// A watch that ends sooner is a failed one, and opening the next has to wait.
const SHORT: Duration = Duration::from_secs(1);
/// Delays after a failed watch.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Changes that wait to be told; beyond it the API server waits.
const BACKLOG: usize = 16;

/// One change.
pub(super) enum Change {
    /// A Pod is new or has changed, and its version.
    Applied(Box<Owned>, u64),
    /// A Pod is gone.
    Deleted { name: String, uid: String },
    /// The watch could not be opened, or broke off. It will be opened again.
    Failed(PodError),
    /// The API server does not remember that far back: nothing more will come.
    Expired,
}

/// Tells changes until it is dropped.
pub(super) struct Changes {
    changes: mpsc::Receiver<Change>,
    task: JoinHandle<()>,
}

impl Changes {
    /// All changes after a version. Must be called inside the runtime.
    pub(super) fn start(api: Api, from: u64) -> Self {
        let (sender, changes) = mpsc::channel(BACKLOG);
        let task = tokio::spawn(async move {
            let source = Source { api, version: from, sender: sender.clone() };
            if let Some(last) = source.run().await {
                // The receiver may be gone: then nobody wants to know.
                sender.send(last).await.ok();
            }
        });
        Self { changes, task }
    }

    pub(super) async fn next(&mut self) -> Change {
        self.changes.recv().await.unwrap_or(Change::Expired)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Source {
    api: Api,
    /// The last version that was seen.
    version: u64,
    sender: mpsc::Sender<Change>,
}

/// Why a watch ended.
enum End {
    /// In order, or its connection was cut.
    Closed,
    /// What the API server said.
    Error(kube::Error),
    /// Nobody listens any more.
    Unheard,
}

impl Source {
    /// Runs until the API server says that it does not know the version any more.
    async fn run(mut self) -> Option<Change> {
        let mut backoff = RETRY;
        loop {
            let opened = Instant::now();
            match self.watch().await {
                Ok(End::Unheard) => return None,
                Ok(End::Closed) => {}
                Ok(End::Error(kube::Error::Api(status))) if is_expired(&status) => return Some(Change::Expired),
                Ok(End::Error(error)) => self.failed(self.api.explain("watching pods", &error)).await,
                Err(error) => self.failed(error).await,
            }
            if opened.elapsed() > SHORT {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn failed(&self, error: PodError) {
        self.sender.send(Change::Failed(error)).await.ok();
    }

    async fn watch(&mut self) -> Result<End, PodError> {
        let params = WatchParams::default().labels(&creator()).timeout(LASTS_SECONDS);
        let version = self.version.to_string();
        // The call ends with the head of the answer; an expired version may be told there as well.
        let opening = async { Ok(self.api.lean_pods.watch(&params, &version).await.map(StreamExt::boxed)) };
        let stream = match self.api.call("watching pods", opening).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(End::Error(error)),
        };
        Ok(tokio::time::timeout(OVERDUE, self.pump(stream)).await.unwrap_or(End::Closed))
    }

    async fn pump(&mut self, stream: impl Stream<Item = kube::Result<WatchEvent<LeanPod>>>) -> End {
        let mut stream = pin!(stream);
        while let Some(event) = stream.next().await {
            let change = match event {
                Ok(WatchEvent::Added(LeanPod(pod)) | WatchEvent::Modified(LeanPod(pod))) => {
                    self.version = version(pod.metadata.resource_version.as_deref());
                    Change::Applied(Box::new(Owned::of_pod(&pod)), self.version)
                }
                Ok(WatchEvent::Deleted(LeanPod(pod))) => {
                    self.version = version(pod.metadata.resource_version.as_deref());
                    let metadata = pod.metadata;
                    Change::Deleted { name: metadata.name.unwrap_or_default(), uid: metadata.uid.unwrap_or_default() }
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    self.version = version(Some(&bookmark.metadata.resource_version));
                    continue;
                }
                Ok(WatchEvent::Error(status)) => return End::Error(kube::Error::Api(status)),
                Err(error) => return End::Error(error),
            };
            if self.sender.send(change).await.is_err() {
                return End::Unheard;
            }
        }
        End::Closed
    }
}

/// Whether the API server says that the version is too old.
fn is_expired(status: &kube::core::Status) -> bool {
    status.code == 410
}
