//! NOTIFY and LISTEN: whoever waits for a task reads the tables at once instead of at the next poll.
//!
//! A notification has no content and may get lost (a broken connection, a `PgBouncer` that pools transactions), so
//! listeners must poll as well.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use sha2::{Digest, Sha256};

use super::connect::Target;
use super::pool::text;
use super::{Db, DbError};

/// The longest retry timeout of a notification, which is only a hint.
const RETRY_TIMEOUT: Duration = Duration::from_secs(3);
/// The delay before a lost connection is opened again.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Bytes of the hash in a channel's name: identifiers end at 63 bytes, and task ids may be longer.
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
    /// Notifies the listeners of a task that its rows have changed. Gives up after three seconds.
    pub fn notify(&self, task_id: &str) -> Result<(), DbError> {
        let channel = channel(task_id);
        self.with_retry_timeout(self.retry_timeout.min(RETRY_TIMEOUT)).run("notify the listeners of a task", |tx| {
            Ok(_ = tx.execute("SELECT pg_notify($1, '')", &[text(&channel)])?)
        })
    }

    /// Starts to listen to a task. Connects without retries.
    pub fn listen(&self, task_id: &str) -> Result<Listener, DbError> {
        let mut listener = Listener {
            target: self.shared.target.clone(),
            application_name: self.shared.application_name.clone(),
            channel: channel(task_id),
            client: None,
        };
        listener.connect()?;
        Ok(listener)
    }
}

impl Listener {
    /// Waits until a notification arrives (true) or the timeout ends (false). Opens a lost connection again; since a
    /// notification may have been missed meanwhile, the wait then ends early with false.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let Some(client) = &mut self.client else {
            thread::sleep(timeout.min(RECONNECT_DELAY));
            if !self.reconnect() {
                thread::sleep(deadline.saturating_duration_since(Instant::now()));
            }
            return false;
        };
        let first = client.notifications().timeout_iter(timeout).next();
        match first {
            Ok(Some(_)) => {
                // One read of the tables covers all notifications so far.
                while let Ok(Some(_)) = client.notifications().iter().next() {}
                return true;
            }
            Ok(None) if !client.is_closed() => return false,
            Ok(None) | Err(_) => {}
        }
        self.client = None;
        self.reconnect();
        false
    }

    fn reconnect(&mut self) -> bool {
        self.connect().inspect_err(|error| tracing::debug!(%error, "cannot listen to a task")).is_ok()
    }

    fn connect(&mut self) -> Result<(), DbError> {
        let mut client = self.target.connect_without_settings(&self.application_name)?;
        client.batch_execute(&format!("LISTEN {}", self.channel)).map_err(|error| self.target.unreachable(&error))?;
        self.client = Some(client);
        Ok(())
    }
}
