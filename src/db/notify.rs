//! NOTIFY and LISTEN: who waits for a task looks at the tables at once and not at its next turn.
//!
//! A notification says "look again" and nothing else; it may get lost (a broken connection, a `PgBouncer` that pools
//! transactions), so whoever waits looks again by itself from time to time.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use sha2::{Digest, Sha256};

use super::connect::Target;
use super::{Db, DbError};

/// How long a notification is tried: nobody should wait long for the sake of a hint.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between attempts to get a lost connection back.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of the hash in a channel's name: names end at 63 bytes, and task ids may be longer.
const CHANNEL_HASH: usize = 20;

fn channel(task_id: &str) -> String {
    let hash = Sha256::digest(task_id.as_bytes());
    hash.iter().take(CHANNEL_HASH).fold("syncctl_".to_owned(), |mut name, byte| {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Waits for notifications of one task. Has a connection of its own.
pub struct Listener {
    target: Target,
    application_name: String,
    channel: String,
    client: Option<Client>,
}

impl Db {
    /// Tells whoever waits for a task that something about it was written. Gives up soon, whatever the retry_timeout of this
    /// database is.
    pub fn notify(&self, task_id: &str) -> Result<(), DbError> {
        let channel = channel(task_id);
        self.with_retry_timeout(self.retry_timeout.min(PATIENCE)).run("notifying of a task", |session| {
            session.query("SELECT pg_notify($1, '')", &[(&channel, Type::TEXT)])?;
            Ok(())
        })
    }

    /// Starts to listen to a task. One attempt: without a listener, looking from time to time does.
    pub fn listen(&self, task_id: &str) -> Result<Listener, DbError> {
        let mut listener = Listener {
            target: self.target().clone(),
            application_name: self.application_name().to_owned(),
            channel: channel(task_id),
            client: None,
        };
        listener.connect()?;
        Ok(listener)
    }
}

impl Listener {
    /// Waits until a notification comes (true) or time is over (false). Never fails: a lost connection is opened again,
    /// and as a notification may have been missed meanwhile, the wait then ends early with false.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let Some(client) = &mut self.client else {
            thread::sleep(timeout.min(RECONNECT_PAUSE));
            if let Err(error) = self.connect() {
                tracing::debug!(%error, "listening again failed");
                thread::sleep(deadline.saturating_duration_since(Instant::now()));
            }
            return false;
        };
        let first = client.notifications().timeout_iter(timeout).next();
        match first {
            Ok(Some(_)) => {
                // One look at the tables answers all that came so far.
                while let Ok(Some(_)) = client.notifications().iter().next() {}
                return true;
            }
            Ok(None) if !client.is_closed() => return false,
            Ok(None) | Err(_) => {}
        }
        self.client = None;
        if let Err(error) = self.connect() {
            tracing::debug!(%error, "listening again failed");
        }
        false
    }

    fn connect(&mut self) -> Result<(), DbError> {
        let mut client = self.target.connect_bare(&self.application_name)?;
        client.batch_execute(&format!("LISTEN {}", self.channel)).map_err(|error| self.target.unreachable(&error))?;
        self.client = Some(client);
        Ok(())
    }
}
