//! Following one Pod: a watch for speed, and a plain read at each resync for what it missed.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::api::Api;
use crate::pod::Update;
use crate::pod::status::Observation;

/// Watches one Pod until it is dropped.
pub struct Follower {
    task: JoinHandle<()>,
}

impl Follower {
    pub(super) fn start(
        runtime: &Runtime,
        api: Api,
        pod: String,
        resync: Duration,
        tell: Box<dyn Fn(Update) + Send>,
    ) -> Self {
        Self { task: runtime.spawn(follow(api, pod, resync, tell)) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch for speed, and a plain read every `resync` for what a watch missed.
async fn follow(api: Api, pod: String, resync: Duration, tell: Box<dyn Fn(Update) + Send>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={pod}"));
    let mut events = watcher(api.pods.clone(), config).default_backoff().boxed();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + resync, resync);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whether the list with which a watch begins, also after an interruption, has shown the Pod.
    let mut listed = false;
    loop {
        let update = tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => watched(&event, &mut listed),
                Some(Err(error)) => {
                    tracing::debug!(%error, pod, "watching the pod");
                    None
                }
                None => return,
            },
            _ = ticks.tick() => match api.call("reading the pod", api.pods.get_opt(&pod)).await {
                Ok(Some(pod)) => Some(Update::Seen(Box::new(Observation::of(&pod)))),
                Ok(None) => Some(Update::Gone),
                Err(error) => {
                    tracing::warn!(%error, "the pod will be read again");
                    None
                }
            },
        };
        if let Some(update) = update {
            let gone = update == Update::Gone;
            tell(update);
            if gone {
                return;
            }
        }
    }
}

fn watched(event: &watcher::Event<Pod>, listed: &mut bool) -> Option<Update> {
    match event {
        watcher::Event::Apply(pod) => Some(Update::Seen(Box::new(Observation::of(pod)))),
        watcher::Event::InitApply(pod) => {
            *listed = true;
            Some(Update::Seen(Box::new(Observation::of(pod))))
        }
        watcher::Event::Init => {
            *listed = false;
            None
        }
        // It was deleted while nobody watched.
        watcher::Event::InitDone if !*listed => Some(Update::Gone),
        watcher::Event::InitDone => None,
        watcher::Event::Delete(_) => Some(Update::Gone),
    }
}
