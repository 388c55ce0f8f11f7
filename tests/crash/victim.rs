//! What is killed in a round of the crash test, and how it is found on this machine.

use std::time::{Duration, Instant};

use super::Dice;
use crate::support::processes::{self, Role, kill};
use crate::support::{Running, StoppedServer, Warehouse, World};

/// From when a victim is there until it is struck: about as long as it lives.
const LIFE: Duration = Duration::from_millis(1800);
/// The same for what is there before any container is.
const LONG_LIFE: Duration = Duration::from_millis(3800);
/// How long containerd is away.
const OUTAGE: Duration = Duration::from_millis(1500);

/// A victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The connector's own process, by SIGKILL.
    Connector,
    /// The first process of its container, and with it all of them.
    Container,
    Sidecar,
    /// A session that loads rows is terminated.
    Backend,
    /// A session that stores states and the outcome is terminated.
    Results,
    /// A backend's process gets SIGKILL: Postgres ends all others and recovers.
    Server,
    /// The Pod is deleted and has its time to end.
    Pod,
    /// The Pod is deleted without any.
    PodAtOnce,
    /// The node's containerd, by SIGKILL; it is back in a moment.
    Containerd,
}

/// In turn; what is easily hit in a hundred ways comes twice.
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

/// Where victims are looked for.
pub struct Hunt<'a> {
    pub world: &'a World,
    pub warehouse: &'a Warehouse,
    pub containerd: &'a str,
    pub task: &'a str,
    pub dice: &'a mut Dice,
    pub running: &'a mut Running,
}

impl Victim {
    /// Its name in `SYNCCTL_TEST_VICTIMS`.
    pub fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }

    /// Whether the sidecar had no time to clean up, so that a staging table may wait for the next run.
    pub fn may_leave_staging(self) -> bool {
        matches!(self, Self::Sidecar | Self::Pod | Self::PodAtOnce | Self::Server)
    }

    /// Whether all other tests would be its victims, too.
    pub fn is_everybodys(self) -> bool {
        matches!(self, Self::Containerd | Self::Server)
    }

    /// Whether a run goes on as if nothing had been.
    pub fn is_survived(self) -> bool {
        matches!(self, Self::Backend | Self::Results | Self::Server)
    }

    /// Kills it at a random moment. `None` when the run was over before; else what was killed, and how long after its
    /// appearance.
    pub fn strike(self, hunt: &mut Hunt<'_>) -> Option<String> {
        match self {
            Self::Connector => hunt.kill(Role::Connector),
            Self::Container => hunt.kill(Role::Wrapper),
            Self::Sidecar => hunt.kill(Role::Sidecar),
            Self::Backend => hunt.terminate(&["syncctl-sidecar"]),
            Self::Results => hunt.terminate(&["syncctl read", "syncctl"]),
            Self::Server => hunt.crash_server(),
            Self::Pod => hunt.delete_pod(&["--wait=false"]),
            Self::PodAtOnce => hunt.delete_pod(&["--grace-period=0", "--force", "--wait=false"]),
            Self::Containerd => hunt.lose_containerd(),
        }
    }
}

impl Hunt<'_> {
    /// Waits for a victim to appear; `None` when the run ends before.
    fn appears<T>(&mut self, mut look: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = look(self) {
                return Some(found);
            }
            if self.running.has_ended() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets a random part of a life pass; `None` when the run ends in it.
    fn let_live(&mut self, life: Duration) -> Option<Duration> {
        let pause = self.dice.part_of(life);
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
        self.appears(|hunt| processes::of_task(hunt.task, role))?;
        let pause = self.let_live(LIFE)?;
        let pid = processes::of_task(self.task, role)?;
        kill(pid).then(|| format!("process {pid} after {pause:?}"))
    }

    fn terminate(&mut self, applications: &[&str]) -> Option<String> {
        let sessions =
            |hunt: &Self| applications.iter().flat_map(|name| hunt.warehouse.sessions(name)).collect::<Vec<i32>>();
        self.appears(|hunt| (!sessions(hunt).is_empty()).then_some(()))?;
        let pause = self.let_live(LIFE)?;
        let session = self.dice.pick(&sessions(self))?;
        let query = format!("SELECT pg_terminate_backend({session})::int::bigint");
        (self.warehouse.number(&query) == 1).then(|| format!("session {session} after {pause:?}"))
    }

    fn crash_server(&mut self) -> Option<String> {
        let sessions = |hunt: &Self| hunt.warehouse.sessions("syncctl-sidecar");
        self.appears(|hunt| (!sessions(hunt).is_empty()).then_some(()))?;
        let pause = self.let_live(LIFE)?;
        let session = self.dice.pick(&sessions(self))?;
        kill(session).then(|| format!("the server through backend {session} after {pause:?}"))
    }

    fn delete_pod(&mut self, how: &[&str]) -> Option<String> {
        let pod = self.appears(|hunt| Some(hunt.world.place.pods().first()?["metadata"]["name"].clone()))?;
        let pod = pod.as_str().expect("a name");
        let pause = self.let_live(LONG_LIFE)?;
        let namespace = self.world.namespace();
        let arguments = [&["delete", "pod", pod, "-n", &namespace.name, "--ignore-not-found"], how].concat();
        let said = namespace.kubectl(&arguments);
        said.contains("deleted").then(|| format!("pod {pod} after {pause:?}"))
    }

    fn lose_containerd(&mut self) -> Option<String> {
        let pause = self.let_live(LONG_LIFE)?;
        let outage = self.dice.part_of(OUTAGE);
        let away = StoppedServer::stop(self.containerd);
        std::thread::sleep(outage);
        drop(away);
        Some(format!("containerd after {pause:?} for {outage:?}"))
    }
}
