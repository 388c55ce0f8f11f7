//! Watching the tasks of this machine: inotify for speed, and a look once a second for what inotify does not report, the
//! death of a supervisor.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::store::TaskStore;
use crate::pod::{Callback, PodEvent, Scope, Subscription, TaskPod};

/// How often tasks are read even if no change was reported.
const POLL: Duration = Duration::from_secs(1);
/// The longest wait for a change, after which a dropped subscription is noticed.
const STOP_POLL: Duration = Duration::from_millis(200);

/// Notices changes in a directory.
pub struct DirectoryWatch {
    inotify: Option<OwnedFd>,
}

impl DirectoryWatch {
    /// From now on. If the system has no inotify instance left, a change is only noticed at the next look.
    pub fn new(directory: &Path) -> Self {
        let watch = || -> io::Result<OwnedFd> {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let events = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE | inotify::WatchFlags::CREATE;
            inotify::add_watch(&inotify, directory, events)?;
            Ok(inotify)
        };
        Self { inotify: watch().ok() }
    }

    /// Waits for a change, at most for `limit`. Returns whether there may have been one.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(limit);
            return true;
        };
        let limit = Timespec::try_from(limit).ok();
        if !poll(&mut [PollFd::new(inotify, PollFlags::IN)], limit.as_ref()).is_ok_and(|ready| ready > 0) {
            return false;
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        // Which file it was does not matter: all are read.
        while reader.next().is_ok() {}
        true
    }
}

/// Reports the tasks of a scope until the subscription is dropped.
pub fn start(store: TaskStore, scope: Scope<'_>, resync: Duration, on_event: Callback<PodEvent>) -> Subscription {
    // Of each task its uid and the last snapshot that was reported.
    let mut known: HashMap<String, (String, Option<TaskPod>)> = HashMap::new();
    let only = match scope {
        Scope::All => None,
        Scope::Pod(pod) => {
            known.insert(pod.name.clone(), (pod.uid.clone(), None));
            Some(pod.name.clone())
        }
    };
    let mut synced: Option<Instant> = None;
    let is_stopped = Arc::new(AtomicBool::new(false));
    let stop = StopOnDrop(Arc::clone(&is_stopped));
    let mut report = move |store: &TaskStore, is_stopped: &AtomicBool| {
        let tasks = match &only {
            Some(name) => store.task(name).map(|task| task.into_iter().collect()),
            None => store.tasks(),
        };
        let tasks: HashMap<String, TaskPod> = match tasks {
            Ok(tasks) => tasks.into_iter().map(|task| (task.id.name.clone(), task)).collect(),
            Err(error) => return on_event(PodEvent::Failed(error)),
        };
        let deleted = known.extract_if(|name, (uid, _)| tasks.get(name).is_none_or(|task| task.id.uid != *uid));
        let mut events: Vec<PodEvent> = deleted.map(|(name, (uid, _))| PodEvent::Deleted { name, uid }).collect();
        for (name, task) in tasks {
            let reported = known.get(&name).and_then(|(_, reported)| reported.as_ref());
            if reported != Some(&task) {
                events.push(PodEvent::Updated(Box::new(task.clone())));
                known.insert(name, (task.id.uid.clone(), Some(task)));
            }
        }
        if synced.is_none_or(|at| at.elapsed() >= resync) {
            synced = Some(Instant::now());
            events.push(PodEvent::Synced);
        }
        for event in events.into_iter().take_while(|_| !is_stopped.load(Ordering::SeqCst)) {
            on_event(event);
        }
    };
    std::thread::spawn(move || {
        let changes = DirectoryWatch::new(store.root());
        while !is_stopped.load(Ordering::SeqCst) {
            report(&store, &is_stopped);
            let next = Instant::now() + POLL;
            while !is_stopped.load(Ordering::SeqCst) && Instant::now() < next && !changes.wait(STOP_POLL) {}
        }
    });
    Box::new(stop)
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
