//! Leader election: a Lease that one of several processes holds and renews.
//!
//! The clocks of two machines are never compared. A holder counts the time from before its request and stops leading by
//! itself when that has passed; the others count from when they last saw the Lease change, and wait longer than that.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::client::{Api, if_present};
use crate::pod::{Callback, LeaderElection, Leadership, PodError};
use crate::retry::jittered;

/// The Lease's name.
pub(super) const NAME: &str = "syncctl";
/// How long releasing the Lease may take; without it the others wait until it expires.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes part in the election until it is dropped. Dropped without [`release`](LeaderElection::release) it keeps the Lease
/// until that expires, as a killed process does.
pub struct Election {
    deadline: Arc<LeaderUntil>,
    /// Makes the task release the Lease and then use the sender.
    release: Option<oneshot::Sender<mpsc::Sender<()>>>,
    task: JoinHandle<()>,
}

impl Election {
    /// A Lease expires `duration` after its last renewal.
    pub(super) fn start(
        runtime: &Runtime,
        api: Api,
        identity: &str,
        duration: Duration,
        on_change: Callback<Leadership>,
    ) -> Self {
        let deadline = Arc::new(LeaderUntil::default());
        let (release, released) = oneshot::channel::<mpsc::Sender<()>>();
        // Unique even for processes with the same configuration.
        let identity = format!("{identity}_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let reported = Reported::Nothing;
        let mut candidate = Candidate {
            api,
            identity,
            duration,
            deadline: Arc::clone(&deadline),
            on_change,
            reported,
            observed: None,
            held: None,
        };
        let task = runtime.spawn(async move {
            tokio::select! {
                () = candidate.run() => {}
                Ok(done) = released => {
                    candidate.release().await;
                    // The receiver may have stopped waiting.
                    done.send(()).ok();
                }
            }
        });
        Self { deadline, release: Some(release), task }
    }
}

impl LeaderElection for Election {
    fn is_leader(&self) -> bool {
        self.deadline.is_ahead()
    }

    fn release(mut self: Box<Self>) {
        self.deadline.set(None);
        let (done, released) = mpsc::channel();
        if self.release.take().is_some_and(|release| release.send(done).is_ok()) {
            released.recv_timeout(RELEASE_TIMEOUT).ok();
        }
    }
}

/// The only process leads: the credentials have no right to a Lease.
pub struct Unopposed;

impl LeaderElection for Unopposed {
    fn is_leader(&self) -> bool {
        true
    }

    fn release(self: Box<Self>) {}
}

impl Drop for Election {
    fn drop(&mut self) {
        self.task.abort();
        self.deadline.set(None);
    }
}

/// Until when this process leads.
#[derive(Default)]
struct LeaderUntil(Mutex<Option<Instant>>);

impl LeaderUntil {
    fn is_ahead(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// What was reported last.
#[derive(PartialEq, Eq)]
enum Reported {
    Nothing,
    Leads(u64),
    Follows(Option<String>),
}

struct Candidate {
    api: Api,
    identity: String,
    duration: Duration,
    deadline: Arc<LeaderUntil>,
    on_change: Callback<Leadership>,
    reported: Reported,
    /// The last change of the Lease and when it was observed.
    observed: Option<(LeaseSpec, Instant)>,
    /// The Lease after our last renewal: the next renewal need not read it.
    held: Option<Lease>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Take it over, or renew it.
    Acquire,
    /// Another process holds it for this time, unless it renews it.
    Wait(Duration),
}

impl Candidate {
    async fn run(&mut self) {
        loop {
            let delay = match self.acquire_or_renew().await {
                Ok(delay) => delay,
                Err(error) => {
                    (self.on_change)(Leadership::Failed(error));
                    jittered(self.duration / 10)
                }
            };
            self.report_expiry();
            tokio::time::sleep(delay).await;
            self.report_expiry();
        }
    }

    /// Takes over or renews the Lease if possible. Returns the delay until the next attempt.
    async fn acquire_or_renew(&mut self) -> Result<Duration, PodError> {
        let started = Instant::now();
        let lease = match self.held.take() {
            Some(lease) => lease,
            None => match self.get().await? {
                Some(lease) => lease,
                None => self.api.create_lease().await?,
            },
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        if self.observed.as_ref().is_none_or(|(before, _)| *before != spec) {
            self.observed = Some((spec.clone(), now));
        }
        let unchanged = self.observed.as_ref().map_or(Duration::ZERO, |(_, since)| now - *since);
        if let Decision::Wait(expires) = decide(&spec, &self.identity, unchanged, self.duration) {
            self.follow(spec.holder_identity);
            // Often enough to notice a release within two seconds, and not later than it expires.
            return Ok(jittered(self.duration * 3 / 20).min(expires));
        }
        let spec = acquired(spec, &self.identity, self.duration, Timestamp::now());
        let Some(lease) = self.replace("renew the lease", lease, spec).await? else {
            // Another process was faster, or the Lease was deleted.
            return Ok(jittered(self.duration / 50));
        };
        self.deadline.set(Some(started + self.duration * 2 / 3));
        let spec = lease.spec.clone().unwrap_or_default();
        let term = spec.lease_transitions.and_then(|term| u64::try_from(term).ok()).unwrap_or_default();
        self.observed = Some((spec, Instant::now()));
        self.held = Some(lease);
        if self.reported != Reported::Leads(term) {
            self.reported = Reported::Leads(term);
            (self.on_change)(Leadership::Leads { term });
        }
        Ok(self.duration / 4)
    }

    /// `None`: the Lease has changed since it was read.
    async fn replace(&mut self, action: &str, lease: Lease, spec: LeaseSpec) -> Result<Option<Lease>, PodError> {
        let params = PostParams::default();
        let next = Lease { spec: Some(spec), ..lease };
        let call = if_present(self.api.leases.replace(NAME, &params, &next), true);
        self.api.call_within(action, self.call_timeout(), call).await
    }

    async fn get(&mut self) -> Result<Option<Lease>, PodError> {
        self.api.call_within("read the lease", self.call_timeout(), self.api.leases.get_opt(NAME)).await
    }

    /// Well before the deadline of the leader.
    fn call_timeout(&self) -> Duration {
        self.duration / 4
    }

    fn follow(&mut self, holder: Option<String>) {
        self.deadline.set(None);
        let reported = Reported::Follows(holder.clone());
        if self.reported != reported {
            self.reported = reported;
            (self.on_change)(Leadership::Follows { holder });
        }
    }

    /// Reports that the Lease was not renewed in time.
    fn report_expiry(&mut self) {
        if matches!(self.reported, Reported::Leads(_)) && !self.deadline.is_ahead() {
            self.follow(None);
        }
    }

    /// Releases the Lease if this process holds it.
    async fn release(&mut self) {
        self.deadline.set(None);
        loop {
            let Ok(Some(lease)) = self.get().await else { return };
            let mut spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_ref() != Some(&self.identity) {
                return;
            }
            spec.holder_identity = Some(String::new());
            // `None`: a renewal that was under way came in between.
            if !matches!(self.replace("release the lease", lease, spec).await, Ok(None)) {
                return;
            }
        }
    }
}

impl Api {
    pub(super) async fn lease_uid(&self) -> Result<String, PodError> {
        let lease = match self.call("read the lease", self.leases.get_opt(NAME)).await? {
            Some(lease) => lease,
            None => self.create_lease().await?,
        };
        Ok(lease.metadata.uid.unwrap_or_default())
    }

    /// Creates a Lease without a holder, or reads the one that another process has created meanwhile.
    async fn create_lease(&self) -> Result<Lease, PodError> {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(LeaseSpec::default()) };
        let params = PostParams::default();
        let call = if_present(self.leases.create(&params, &lease), true);
        match self.call("create the lease", call).await? {
            Some(lease) => Ok(lease),
            None => self.call("read the lease", self.leases.get(NAME)).await,
        }
    }
}

/// `unchanged`: the time since the Lease was last seen to change. `duration` counts where the Lease has none of its own.
fn decide(spec: &LeaseSpec, identity: &str, unchanged: Duration, duration: Duration) -> Decision {
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Acquire,
        Some(holder) if holder == identity => Decision::Acquire,
        Some(_) => {
            let theirs = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let expires = theirs.map_or(duration, Duration::from_secs).saturating_sub(unchanged);
            if expires.is_zero() { Decision::Acquire } else { Decision::Wait(expires) }
        }
    }
}

/// The Lease as `identity` takes it over or renews it.
fn acquired(before: LeaseSpec, identity: &str, duration: Duration, now: Timestamp) -> LeaseSpec {
    let renewed = before.holder_identity.as_deref() == Some(identity);
    // The first holder ever does not count as a transition.
    let transitions = match before.lease_transitions {
        Some(transitions) if !renewed => transitions + 1,
        transitions => transitions.unwrap_or_default(),
    };
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: if renewed { before.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::{Decision, LeaderUntil, LeaseSpec, acquired, decide};
    use jiff::Timestamp;
    use std::time::{Duration, Instant};

    const DURATION: Duration = Duration::from_secs(10);

    fn held_by(holder: &str) -> LeaseSpec {
        acquired(LeaseSpec::default(), holder, DURATION, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_is_acquired_if_it_is_free_or_ours_or_unchanged_for_its_duration() {
        let short = LeaseSpec { lease_duration_seconds: Some(4), ..held_by("b") };
        let without_duration = LeaseSpec { lease_duration_seconds: None, ..held_by("b") };
        for (label, spec, unchanged, expected) in [
            ("new", &LeaseSpec::default(), 0, Decision::Acquire),
            ("released", &held_by(""), 0, Decision::Acquire),
            ("ours", &held_by("a"), 0, Decision::Acquire),
            ("another process's", &held_by("b"), 0, Decision::Wait(DURATION)),
            ("another process's for 7 s", &held_by("b"), 7, Decision::Wait(Duration::from_secs(3))),
            ("expired", &held_by("b"), 10, Decision::Acquire),
            ("shorter than ours", &short, 4, Decision::Acquire),
            ("without a duration", &without_duration, 9, Decision::Wait(Duration::from_secs(1))),
        ] {
            assert_eq!(decide(spec, "a", Duration::from_secs(unchanged), DURATION), expected, "{label}");
        }
    }

    #[test]
    fn a_renewal_keeps_acquire_time_and_transitions() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let first = held_by("a");
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = acquired(first.clone(), "a", DURATION, at(5));
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(0), &first.acquire_time));
        let moved = acquired(renewed, "b", DURATION, at(9));
        assert_eq!((moved.lease_transitions, moved.acquire_time.map(|time| time.0)), (Some(1), Some(at(9))));
    }

    #[test]
    fn leadership_ends_at_its_deadline() {
        let deadline = LeaderUntil::default();
        assert!(!deadline.is_ahead());
        deadline.set(Some(Instant::now() + Duration::from_hours(1)));
        assert!(deadline.is_ahead());
        deadline.set(Some(Instant::now()));
        assert!(!deadline.is_ahead());
    }
}
