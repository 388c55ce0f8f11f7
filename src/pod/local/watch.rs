//! Telling what changes among the tasks of this machine: at once where the file system says so, and once a second for
//! what it cannot say, which is that a supervisor has died.

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

use super::store::Store;
use crate::pod::{Event, Guard, Owned, PodError, Update};

/// How often supervisors are looked at, and whether anybody still listens.
const TICK: Duration = Duration::from_secs(1);
/// The longest wait for a change: who no longer listens is not told for longer.
const WAIT: Duration = Duration::from_millis(200);

/// Word of changes in a folder.
pub struct Changes {
    inotify: Option<OwnedFd>,
}

impl Changes {
    /// From now on. Where the system has no more room for it, a change is seen at the next look.
    pub fn of(folder: &Path) -> Self {
        let listen = || -> io::Result<OwnedFd> {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let what = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE | inotify::WatchFlags::CREATE;
            inotify::add_watch(&inotify, folder, what)?;
            Ok(inotify)
        };
        Self { inotify: listen().ok() }
    }

    /// Waits for a change, at most so long; says whether there was one.
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
        // What has changed is looked for anyway.
        while reader.next().is_ok() {}
        true
    }
}

/// Tells of all tasks until the guard is dropped.
pub fn all(store: Store, resync: Duration, tell: Box<dyn Fn(Event) + Send>) -> Guard {
    let mut known: HashMap<String, Owned> = HashMap::new();
    // A whole list is worth a word at the first look and at each resync.
    let mut listed: Option<Instant> = None;
    start(store.clone(), move |stopped| {
        let there = match tasks(&store) {
            Ok(there) => there,
            Err(error) => {
                tell(Event::Failed(error));
                return true;
            }
        };
        let mut events = Vec::new();
        known.retain(|name, pod| {
            let stays = there.get(name).is_some_and(|now| now.uid == pod.uid);
            if !stays {
                events.push(Event::Gone { name: name.clone(), uid: pod.uid.clone() });
            }
            stays
        });
        for (name, pod) in there {
            if known.get(&name) != Some(&pod) {
                events.push(Event::Seen(Box::new(pod.clone())));
                known.insert(name, pod);
            }
        }
        if listed.is_none_or(|at| at.elapsed() >= resync) {
            listed = Some(Instant::now());
            events.push(Event::Listed);
        }
        for event in events {
            if stopped.load(Ordering::SeqCst) {
                return false;
            }
            tell(event);
        }
        true
    })
}

/// Tells of one task until it is gone, or the guard is dropped.
pub fn one(store: Store, name: String, resync: Duration, tell: Box<dyn Fn(Update) + Send>) -> Guard {
    let mut last: Option<(Owned, Instant)> = None;
    start(store.clone(), move |stopped| {
        let pod = match store.task(&name) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::warn!(%error, "the task will be looked at again");
                return true;
            }
        };
        if stopped.load(Ordering::SeqCst) {
            return false;
        }
        let Some(pod) = pod else {
            tell(Update::Gone);
            return false;
        };
        let is_news = last.as_ref().is_none_or(|(told, at)| *told != pod || at.elapsed() >= resync);
        if let Some(seen) = pod.observation.clone().filter(|_| is_news) {
            tell(Update::Seen(Box::new(seen)));
            last = Some((pod, Instant::now()));
        }
        true
    })
}

/// Every task by its name.
fn tasks(store: &Store) -> Result<HashMap<String, Owned>, PodError> {
    Ok(store.tasks()?.into_iter().map(|pod| (pod.name.clone(), pod)).collect())
}

/// Ends its thread.
struct Watcher {
    stopped: Arc<AtomicBool>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// Looks now, at every change and at every tick, until `look` says that it is enough.
fn start(store: Store, mut look: impl FnMut(&AtomicBool) -> bool + Send + 'static) -> Guard {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stopped);
    std::thread::spawn(move || {
        let changes = Changes::of(store.root());
        while look(&flag) {
            let tick = Instant::now() + TICK;
            while Instant::now() < tick && !changes.wait(WAIT) {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    });
    Box::new(Watcher { stopped })
}
