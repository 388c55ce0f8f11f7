//! Which of several processes leads: a Lease that one of them holds and renews.
//!
//! No clocks of two machines are compared. A holder counts its own time from before it asked, and stops to lead by
//! itself when the time is up; the others count from when they last saw the Lease change, and wait longer than that.

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

use super::api::{Api, if_present};
use crate::pod::{Callback, LeaderElection, Leadership, PodError};
use crate::retry::jittered;

/// The Lease's name.
const NAME: &str = "syncctl";
/// How long giving up the Lease may take: who shuts down does not wait longer, and the others wait for its end then.
const RELEASE: Duration = Duration::from_secs(2);

/// Takes part in the election until it is dropped. Dropped without [`release`](LeaderElection::release) it keeps the Lease
/// until that expires, as a killed process does.
pub struct Election {
    term: Arc<Term>,
    /// Asks the task to give up the Lease and tell when it has.
    leave: Option<oneshot::Sender<mpsc::Sender<()>>>,
    task: JoinHandle<()>,
}

impl Election {
    pub(super) fn start(
        runtime: &Runtime,
        api: Api,
        identity: &str,
        duration: Duration,
        on_change: Callback<Leadership>,
    ) -> Self {
        let term = Arc::new(Term::default());
        let (leave, left) = oneshot::channel::<mpsc::Sender<()>>();
        // Two processes with one configuration are two all the same.
        let identity = format!("{identity}_{}", &Uuid::new_v4().simple().to_string()[..8]);
        let shared = term.clone();
        let mut candidate = Candidate {
            api,
            identity,
            lasts: duration,
            term: shared,
            on_change,
            state: State::Unknown,
            seen: None,
            held: None,
        };
        let task = runtime.spawn(async move {
            tokio::select! {
                () = candidate.run() => {}
                Ok(done) = left => {
                    candidate.leave().await;
                    // Nobody may wait any more.
                    done.send(()).ok();
                }
            }
        });
        Self { term, leave: Some(leave), task }
    }
}

impl LeaderElection for Election {
    fn is_leader(&self) -> bool {
        self.term.lasts()
    }

    fn release(mut self: Box<Self>) {
        self.term.end();
        let (done, left) = mpsc::channel();
        if self.leave.take().is_some_and(|leave| leave.send(done).is_ok()) {
            // Later than that, the others take over when the Lease expires.
            left.recv_timeout(RELEASE).ok();
        }
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        self.task.abort();
        self.term.end();
    }
}

/// Until when this process leads.
#[derive(Default)]
struct Term {
    until: Mutex<Option<Instant>>,
}

impl Term {
    fn lasts(&self) -> bool {
        self.until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    fn extend(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn end(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What was told last.
#[derive(PartialEq, Eq)]
enum State {
    Unknown,
    Leads(u64),
    Follows(Option<String>),
}

struct Candidate {
    api: Api,
    identity: String,
    lasts: Duration,
    term: Arc<Term>,
    on_change: Callback<Leadership>,
    state: State,
    /// The Lease as it was when it was last seen to change, and when that was.
    seen: Option<(LeaseSpec, Instant)>,
    /// The Lease as our last renewal left it: the next one needs no look at it.
    held: Option<Lease>,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It is ours, or may be.
    Take,
    /// Somebody else's for so long.
    Wait(Duration),
}

impl Candidate {
    async fn run(&mut self) {
        loop {
            let wait = match self.step().await {
                Ok(wait) => wait,
                Err(error) => {
                    (self.on_change)(Leadership::Failed(error));
                    jittered(self.lasts / 10)
                }
            };
            self.notice_the_end();
            tokio::time::sleep(wait).await;
            self.notice_the_end();
        }
    }

    /// Takes or renews the Lease, if that may be done. How long to wait until the next look.
    async fn step(&mut self) -> Result<Duration, PodError> {
        let asked = Instant::now();
        let lease = match self.held.take() {
            Some(lease) => lease,
            None => match self.get().await? {
                Some(lease) => lease,
                None => self.api.create_lease().await?,
            },
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        if self.seen.as_ref().is_none_or(|(before, _)| *before != spec) {
            self.seen = Some((spec.clone(), now));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| now - *since);
        if let Move::Wait(expires) = next_move(&spec, &self.identity, unchanged, self.lasts) {
            self.follow(spec.holder_identity);
            // Often enough to see a release within two seconds, and not later than it expires.
            return Ok(jittered(self.lasts * 3 / 20).min(expires));
        }
        let spec = taken(spec, &self.identity, self.lasts, Timestamp::now());
        let Some(lease) = self.replace("renewing the lease", lease, spec).await? else {
            // Another process was faster, or somebody deleted it: the next look tells.
            return Ok(jittered(self.lasts / 50));
        };
        self.term.extend(asked + self.lasts * 2 / 3);
        let spec = lease.spec.clone().unwrap_or_default();
        let term = spec.lease_transitions.and_then(|term| u64::try_from(term).ok()).unwrap_or_default();
        self.seen = Some((spec, Instant::now()));
        self.held = Some(lease);
        if self.state != State::Leads(term) {
            self.state = State::Leads(term);
            (self.on_change)(Leadership::Leads { term });
        }
        Ok(self.lasts / 4)
    }

    /// `None`: it is not the Lease any more that it was when it was read.
    async fn replace(&mut self, action: &str, lease: Lease, spec: LeaseSpec) -> Result<Option<Lease>, PodError> {
        let params = PostParams::default();
        let next = Lease { spec: Some(spec), ..lease };
        let call = if_present(self.api.leases.replace(NAME, &params, &next), true);
        self.api.call_within(action, self.lasts / 4, call).await
    }

    /// Like every call of a candidate it has to be over well before the term of who leads is.
    async fn get(&mut self) -> Result<Option<Lease>, PodError> {
        self.api.call_within("reading the lease", self.lasts / 4, self.api.leases.get_opt(NAME)).await
    }

    fn follow(&mut self, holder: Option<String>) {
        self.term.end();
        let state = State::Follows(holder.clone());
        if self.state != state {
            self.state = state;
            (self.on_change)(Leadership::Follows { holder });
        }
    }

    /// A term that was not renewed in time is told to be over.
    fn notice_the_end(&mut self) {
        if matches!(self.state, State::Leads(_)) && !self.term.lasts() {
            self.follow(None);
        }
    }

    /// Gives up the Lease, if it is ours.
    async fn leave(&mut self) {
        self.term.end();
        loop {
            let Ok(Some(lease)) = self.get().await else { return };
            let mut spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_ref() != Some(&self.identity) {
                return;
            }
            spec.holder_identity = Some(String::new());
            // `None`: a renewal that was on its way came in between.
            if !matches!(self.replace("releasing the lease", lease, spec).await, Ok(None)) {
                return;
            }
        }
    }
}

impl Api {
    pub(super) async fn lease_uid(&self) -> Result<String, PodError> {
        let lease = match self.call("reading the lease", self.leases.get_opt(NAME)).await? {
            Some(lease) => lease,
            None => self.create_lease().await?,
        };
        Ok(lease.metadata.uid.unwrap_or_default())
    }

    /// A Lease that nobody holds; the one that is there when somebody else was faster.
    async fn create_lease(&self) -> Result<Lease, PodError> {
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(LeaseSpec::default()) };
        let params = PostParams::default();
        let call = if_present(self.leases.create(&params, &lease), true);
        match self.call("creating the lease", call).await? {
            Some(lease) => Ok(lease),
            None => self.call("reading the lease", self.leases.get(NAME)).await,
        }
    }
}

/// Whether a Lease that was not seen to change for so long may be taken.
fn next_move(spec: &LeaseSpec, identity: &str, unchanged: Duration, lasts: Duration) -> Move {
    match spec.holder_identity.as_deref() {
        None | Some("") => Move::Take,
        Some(holder) if holder == identity => Move::Take,
        Some(_) => {
            let theirs = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let expires = theirs.map_or(lasts, Duration::from_secs).saturating_sub(unchanged);
            if expires.is_zero() { Move::Take } else { Move::Wait(expires) }
        }
    }
}

/// The Lease in our hands: taken over or renewed.
fn taken(before: LeaseSpec, identity: &str, lasts: Duration, now: Timestamp) -> LeaseSpec {
    let renewed = before.holder_identity.as_deref() == Some(identity);
    // A Lease that nobody has held yet begins with 0.
    let transitions = match before.lease_transitions {
        Some(transitions) if !renewed => transitions + 1,
        transitions => transitions.unwrap_or_default(),
    };
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(lasts.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: if renewed { before.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::{LeaseSpec, Move, Term, next_move, taken};
    use jiff::Timestamp;
    use std::time::{Duration, Instant};

    const LASTS: Duration = Duration::from_secs(10);

    fn held_by(holder: &str) -> LeaseSpec {
        taken(LeaseSpec::default(), holder, LASTS, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_did_not_change_for_its_own_duration() {
        let short = LeaseSpec { lease_duration_seconds: Some(4), ..held_by("b") };
        let endless = LeaseSpec { lease_duration_seconds: None, ..held_by("b") };
        for (label, spec, unchanged, expected) in [
            ("new", &LeaseSpec::default(), 0, Move::Take),
            ("released", &held_by(""), 0, Move::Take),
            ("ours", &held_by("a"), 0, Move::Take),
            ("somebody's", &held_by("b"), 0, Move::Wait(LASTS)),
            ("somebody's for a while", &held_by("b"), 7, Move::Wait(Duration::from_secs(3))),
            ("expired", &held_by("b"), 10, Move::Take),
            ("a shorter one than ours", &short, 4, Move::Take),
            ("without a duration", &endless, 9, Move::Wait(Duration::from_secs(1))),
        ] {
            assert_eq!(next_move(spec, "a", Duration::from_secs(unchanged), LASTS), expected, "{label}");
        }
    }

    #[test]
    fn a_renewal_keeps_the_time_and_the_number_of_its_term() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let first = held_by("a");
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = taken(first.clone(), "a", LASTS, at(5));
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(0), &first.acquire_time));
        let moved = taken(renewed, "b", LASTS, at(9));
        assert_eq!((moved.lease_transitions, moved.acquire_time.map(|time| time.0)), (Some(1), Some(at(9))));
    }

    #[test]
    fn a_term_ends_by_itself() {
        let term = Term::default();
        assert!(!term.lasts());
        term.extend(Instant::now() + Duration::from_millis(50));
        assert!(term.lasts());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!term.lasts());
    }
}
