//! Reading the body of an admitted request: bounded in size, in time, and together with all other bodies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::chunks::{ChunkError, Chunks};
use super::head::{BodyKind, body_too_large};
use crate::server::wire::{Limits, Response};

/// A body is kept in pieces of this size, and let go piece by piece.
const PIECE: usize = 64 << 10;
/// What each body may take beside the shared budget, so that small requests never wait for large ones.
const FREE: usize = 64 << 10;
/// The budget is counted in these units, to fit into a semaphore.
const UNIT: usize = 1 << 10;
/// How much a body of unknown length takes of the budget at a time.
const STEP: usize = 1 << 20;
/// Bytes read at a time.
const READ: usize = 16 << 10;

/// The shared memory of all bodies.
pub fn budget(limits: &Limits) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limits.bodies_bytes.max(limits.body_bytes).div_ceil(UNIT)))
}

/// A body that was read. Its share of the budget is given back when `share` is dropped.
#[derive(Default)]
pub struct Body {
    pub pieces: VecDeque<Vec<u8>>,
    pub length: usize,
    pub share: Option<OwnedSemaphorePermit>,
}

impl Body {
    fn push(&mut self, mut data: &[u8]) {
        self.length += data.len();
        while !data.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| PIECE.saturating_sub(piece.len()));
            if room == 0 {
                self.pieces.push_back(Vec::new());
                continue;
            }
            let (now, later) = data.split_at(room.min(data.len()));
            self.pieces.back_mut().expect("it has room").extend_from_slice(now);
            data = later;
        }
    }
}

/// How fast a client has to be.
struct Pace {
    started: Instant,
    idle: Duration,
    rate: u32,
}

impl Pace {
    /// When the next byte has to be there, after so many.
    fn deadline(&self, received: usize) -> Instant {
        let earned = Duration::from_secs_f64(
            f64::from(u32::try_from(received).unwrap_or(u32::MAX)) / f64::from(self.rate.max(1)),
        );
        (Instant::now() + self.idle).min(self.started + self.idle + earned)
    }
}

/// Reads one body from a connection of which `buffer` was read already; what is left there does not belong to it.
pub struct Reader<'a> {
    pub stream: &'a mut TcpStream,
    pub buffer: &'a mut Vec<u8>,
    pub limits: &'a Limits,
    pub budget: &'a Arc<Semaphore>,
}

impl Reader<'_> {
    pub async fn read(mut self, kind: BodyKind) -> Result<Body, Response> {
        let mut body = Body::default();
        match kind {
            BodyKind::None => {}
            BodyKind::Length(length) => self.sized(&mut body, length).await?,
            BodyKind::Chunked => self.chunked(&mut body).await?,
        }
        Ok(body)
    }

    async fn sized(&mut self, body: &mut Body, length: usize) -> Result<(), Response> {
        // All of it before the first byte: bodies that each wait for the rest of the others would wait for ever.
        self.take(body, length).await?;
        let mut pace = self.pace();
        loop {
            let taken = self.buffer.len().min(length - body.length);
            body.push(&self.buffer[..taken]);
            self.buffer.drain(..taken);
            if body.length == length {
                return Ok(());
            }
            self.fill(&mut pace, body.length).await?;
        }
    }

    async fn chunked(&mut self, body: &mut Body) -> Result<(), Response> {
        let mut chunks = Chunks::new(self.limits.body_bytes);
        let mut pace = self.pace();
        let mut received = 0;
        loop {
            let before = Instant::now();
            let wanted = body.length + self.buffer.len();
            self.take(body, if wanted > FREE { wanted.next_multiple_of(STEP) } else { wanted }).await?;
            // The client need not hurry while we make it wait.
            pace.started += before.elapsed();
            let taken = chunks.feed(self.buffer, |data| body.push(data)).map_err(|error| match error {
                ChunkError::Malformed => Response::refusal(400, "the chunks of the request's body are malformed"),
                ChunkError::TooLarge => body_too_large(self.limits),
            })?;
            self.buffer.drain(..taken);
            if chunks.is_complete() {
                return Ok(());
            }
            received += taken;
            self.fill(&mut pace, received).await?;
        }
    }

    fn pace(&self) -> Pace {
        Pace { started: Instant::now(), idle: self.limits.body_idle, rate: self.limits.body_rate }
    }

    /// Reads some bytes into the buffer.
    async fn fill(&mut self, pace: &mut Pace, received: usize) -> Result<(), Response> {
        self.buffer.reserve(READ);
        match timeout_at(pace.deadline(received), self.stream.read_buf(self.buffer)).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(_) => Err(Response::refusal(400, "the connection ended before the request's body was complete")),
            Err(_) => Err(Response::refusal(408, "the request's body comes too slowly")),
        }
    }

    /// Takes a share of the budget for a body of so many bytes.
    async fn take(&self, body: &mut Body, bytes: usize) -> Result<(), Response> {
        let has = body.share.as_ref().map_or(0, |share| share.num_permits() * UNIT);
        let wanted = bytes.min(self.limits.body_bytes).saturating_sub(FREE);
        if wanted <= has {
            return Ok(());
        }
        let units = (wanted - has).div_ceil(UNIT);
        let acquired = Arc::clone(self.budget).acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX));
        let Ok(Ok(more)) = timeout(self.limits.bodies_wait, acquired).await else {
            return Err(Response::busy("too many large bodies are being read: try again"));
        };
        match &mut body.share {
            Some(share) => share.merge(more),
            None => body.share = Some(more),
        }
        Ok(())
    }
}
