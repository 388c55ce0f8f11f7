//! What is killed in a round of the crash test, and how it is found on this machine.

use std::time::{Duration, Instant};

use super::Random;
use crate::support::processes::{self, Role, kill};
use crate::support::{Running, StoppedServer, Warehouse, World};

/// The longest delay from the appearance of a victim until its kill: about its lifetime.
const LIFETIME: Duration = Duration::from_millis(1800);
/// The same for victims that exist before the containers do.
const LONG_LIFETIME: Duration = Duration::from_millis(3800);
/// The longest outage of containerd.
const OUTAGE: Duration = Duration::from_millis(1500);

/// A victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The connector's own process, by SIGKILL.
    Connector,
    /// The first process of its container, which ends the container.
    Container,
    Sidecar,
    /// A database session that loads rows.
    Backend,
    /// A database session that stores states and the outcome.
    Results,
    /// A backend process, by SIGKILL: Postgres ends all others and recovers.
    Server,
    /// The Pod, deleted with its grace period.
    Pod,
    /// The Pod, deleted without a grace period.
    PodAtOnce,
    /// The node's containerd, by SIGKILL; it is restarted soon.
    Containerd,
}

/// In turn; the sidecar, which can be killed in many states, twice.
pub const ALL: [Victim; 10] = [
    Victim::Connector,
    Victim::Sidecar,
    Victim::Backend,
    Victim::Pod,
    Victim::Containerd,
    Victim::Container,
    Victim::Sidecar,
    Victim::Results,
    Victim::PodAtOnce,
    Victim::Server,
];

/// A round in which a victim is killed.
pub struct Attack<'a> {
    pub world: &'a World,
    pub warehouse: &'a Warehouse,
    pub containerd: &'a str,
    pub task: &'a str,
    pub random: &'a mut Random,
    pub running: &'a mut Running,
}

impl Victim {
    /// Its name in `SYNCCTL_TEST_VICTIMS`.
    pub fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }

    /// Whether the sidecar may have had no time to drop its staging tables.
    pub fn may_leave_staging(self) -> bool {
        matches!(self, Self::Sidecar | Self::Pod | Self::PodAtOnce | Self::Server)
    }

    /// Whether the kill affects other tests too.
    pub fn disturbs_other_tests(self) -> bool {
        matches!(self, Self::Containerd | Self::Server)
    }

    /// Whether the run must succeed nevertheless.
    pub fn is_survived(self) -> bool {
        matches!(self, Self::Backend | Self::Results | Self::Server)
    }

    /// Kills it at a random moment. Returns what was killed and when; `None` if the run ended before.
    pub fn kill(self, attack: &mut Attack<'_>) -> Option<String> {
        match self {
            Self::Connector => attack.kill(Role::Connector),
            Self::Container => attack.kill(Role::Wrapper),
            Self::Sidecar => attack.kill(Role::Sidecar),
            Self::Backend => attack.terminate(&["syncctl-sidecar"]),
            Self::Results => attack.terminate(&["syncctl read", "syncctl"]),
            Self::Server => attack.crash_server(),
            Self::Pod => attack.delete_pod(&["--wait=false"]),
            Self::PodAtOnce => attack.delete_pod(&["--grace-period=0", "--force", "--wait=false"]),
            Self::Containerd => attack.lose_containerd(),
        }
    }
}

impl Attack<'_> {
    /// Waits for a victim to appear; `None` if the run ends before.
    fn wait_for<T>(&mut self, mut find: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = find(self) {
                return Some(found);
            }
            if self.running.has_ended() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a random part of the lifetime; `None` if the run ends before.
    fn wait(&mut self, lifetime: Duration) -> Option<Duration> {
        let pause = self.random.part_of(lifetime);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if self.running.has_ended() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(pause)
    }

    fn kill(&mut self, role: Role) -> Option<String> {
        self.wait_for(|attack| processes::of_task(attack.task, role))?;
        let pause = self.wait(LIFETIME)?;
        let pid = processes::of_task(self.task, role)?;
        kill(pid).then(|| format!("process {pid} after {pause:?}"))
    }

    fn terminate(&mut self, applications: &[&str]) -> Option<String> {
        let sessions =
            |attack: &Self| applications.iter().flat_map(|name| attack.warehouse.sessions(name)).collect::<Vec<i32>>();
        self.wait_for(|attack| (!sessions(attack).is_empty()).then_some(()))?;
        let pause = self.wait(LIFETIME)?;
        let session = self.random.pick(&sessions(self))?;
        let query = format!("SELECT pg_terminate_backend({session})::int::bigint");
        (self.warehouse.number(&query) == 1).then(|| format!("session {session} after {pause:?}"))
    }

    fn crash_server(&mut self) -> Option<String> {
        let sessions = |attack: &Self| attack.warehouse.sessions("syncctl-sidecar");
        self.wait_for(|attack| (!sessions(attack).is_empty()).then_some(()))?;
        let pause = self.wait(LIFETIME)?;
        let session = self.random.pick(&sessions(self))?;
        kill(session).then(|| format!("the server through backend {session} after {pause:?}"))
    }

    fn delete_pod(&mut self, how: &[&str]) -> Option<String> {
        let pod = self.wait_for(|attack| Some(attack.world.place.pods().first()?["metadata"]["name"].clone()))?;
        let pod = pod.as_str().expect("a name");
        let pause = self.wait(LONG_LIFETIME)?;
        let namespace = self.world.namespace();
        let arguments = [&["delete", "pod", pod, "-n", &namespace.name, "--ignore-not-found"], how].concat();
        let output = namespace.kubectl(&arguments);
        output.contains("deleted").then(|| format!("pod {pod} after {pause:?}"))
    }

    fn lose_containerd(&mut self) -> Option<String> {
        let pause = self.wait(LONG_LIFETIME)?;
        let outage = self.random.part_of(OUTAGE);
        let stopped = StoppedServer::stop(self.containerd);
        std::thread::sleep(outage);
        drop(stopped);
        Some(format!("containerd after {pause:?} for {outage:?}"))
    }
}
