//! Reads the body of an admitted request, bounded in size, in time, and together with all other bodies.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::head::{Framing, body_too_large};
use super::limits::Limits;
use super::memory::Memory;
use super::pace::Pace;
use crate::server::service::Response;

/// How much of the budget a chunked body takes at a time.
const STEP: usize = 1 << 20;
/// Bytes read at a time.
const READ: usize = 16 << 10;
/// Bytes of chunk sizes, extensions and trailers: a constant, plus some per byte of the body (chunks of one byte need
/// five).
const FRAMING_BYTES: usize = 16 << 10;
const FRAMING_BYTES_PER_BYTE: usize = 8;
/// Bytes of a chunk size with its extensions, or of a trailer.
const MAX_LINE_BYTES: usize = 1024;

/// Reads one body.
pub struct BodyReader<'a, S> {
    stream: &'a mut S,
    /// Read and not yet consumed from `position` on.
    buffer: Vec<u8>,
    position: usize,
    pace: Pace,
    /// Bytes of the body at most.
    max: usize,
    limits: &'a Limits,
    memory: &'a mut Memory,
}

impl<'a, S: AsyncRead + Unpin> BodyReader<'a, S> {
    /// `buffer`: what was already read after the head.
    pub fn new(stream: &'a mut S, buffer: Vec<u8>, max: usize, limits: &'a Limits, memory: &'a mut Memory) -> Self {
        Self { stream, buffer, position: 0, pace: Pace::start(), max, limits, memory }
    }

    /// Reads the body; the error is the response.
    pub async fn read(mut self, framing: Framing) -> Result<Vec<u8>, Response> {
        if !framing.fits(self.max) {
            return Err(body_too_large(self.max));
        }
        let mut body = Vec::new();
        match framing {
            Framing::Length(length) => {
                // All of it at once: bodies that hold a part each could wait for each other's rest.
                self.reserve(length).await?;
                body.reserve_exact(length);
                self.copy(&mut body, length).await?;
            }
            Framing::Chunked => self.chunks(&mut body).await?,
        }
        Ok(body)
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> Result<(), Response> {
        let mut framing = 0;
        loop {
            let size = chunk_size(self.line(&mut framing, body).await?)?;
            if size == 0 {
                break;
            }
            let total = body.len().saturating_add(size);
            if total > self.max {
                return Err(body_too_large(self.max));
            }
            let rounded = if Memory::is_free(total) { total } else { total.next_multiple_of(STEP).min(self.max) };
            self.reserve(rounded).await?;
            self.copy(body, size).await?;
            if !self.line(&mut framing, body).await?.is_empty() {
                return Err(malformed_chunks());
            }
        }
        loop {
            match self.line(&mut framing, body).await? {
                [] => return Ok(()),
                trailer if trailer.contains(&b':') => {}
                _ => return Err(malformed_chunks()),
            }
        }
    }

    /// The next line without CR LF. `framing` counts the bytes of all lines.
    async fn line(&mut self, framing: &mut usize, body: &[u8]) -> Result<&[u8], Response> {
        let length = loop {
            let unread = &self.buffer[self.position..];
            let end = memchr::memmem::find(unread, b"\r\n");
            let line = end.map_or_else(|| unread.strip_suffix(b"\r").unwrap_or(unread), |end| &unread[..end]);
            if line.len() > MAX_LINE_BYTES || !line.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
                return Err(malformed_chunks());
            }
            match end {
                Some(length) => break length,
                None => self.fill().await?,
            }
        };
        *framing += length + 2;
        if *framing > FRAMING_BYTES + body.len().saturating_mul(FRAMING_BYTES_PER_BYTE) {
            return Err(malformed_chunks());
        }
        let start = self.position;
        self.position += length + 2;
        Ok(&self.buffer[start..start + length])
    }

    /// Appends the next `count` bytes to the body.
    async fn copy(&mut self, body: &mut Vec<u8>, mut count: usize) -> Result<(), Response> {
        loop {
            let unread = &self.buffer[self.position..];
            let part = &unread[..count.min(unread.len())];
            body.extend_from_slice(part);
            self.position += part.len();
            count -= part.len();
            if count == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Reads some bytes into the buffer.
    async fn fill(&mut self) -> Result<(), Response> {
        self.buffer.drain(..self.position);
        self.position = 0;
        self.buffer.reserve(READ);
        let deadline = self.pace.deadline(self.limits);
        match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
            Ok(Ok(count @ 1..)) => {
                self.pace.count(count);
                Ok(())
            }
            Ok(_) => Err(Response::error(400, "the connection ended before the body was complete")),
            Err(_) => Err(Response::error(408, "the body arrives too slowly")),
        }
    }

    /// Reserves the memory of a body of this many bytes.
    async fn reserve(&mut self, bytes: usize) -> Result<(), Response> {
        let before = Instant::now();
        self.memory.reserve(bytes, self.limits).await?;
        // The client does not send while we wait.
        self.pace.pause(before.elapsed());
        Ok(())
    }
}

fn malformed_chunks() -> Response {
    Response::error(400, "the chunks of the body are malformed")
}

/// The size in the first line of a chunk; extensions are ignored.
fn chunk_size(line: &[u8]) -> Result<usize, Response> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let is_valid = !digits.is_empty() && (rest.is_empty() || rest.trim_ascii_start().first() == Some(&b';'));
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_valid).ok_or_else(malformed_chunks)?;
    // Larger numbers are over any limit.
    Ok(usize::from_str_radix(digits, 16).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::{BodyReader, Limits, Memory};
    use crate::server::guard::memory::budget;
    use proptest::prelude::*;

    /// Reads a chunked body of which `received` bytes came with the head; returns it and what follows it, or the status
    /// of the response.
    fn read(bytes: &[u8], received: usize, limit: usize) -> Result<(Vec<u8>, Vec<u8>), u16> {
        let limits = Limits { body_bytes: limit, ..Limits::default() };
        let mut memory = Memory::new(&budget(&limits), IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (received, mut stream) = bytes.split_at(received.min(bytes.len()));
            let mut body = Vec::new();
            let mut reader = BodyReader::new(&mut stream, received.to_vec(), limit, &limits, &mut memory);
            reader.chunks(&mut body).await.map_err(|rejected| rejected.status)?;
            let rest = reader.buffer.split_off(reader.position);
            Ok((body, [&rest, stream].concat()))
        })
    }

    #[test]
    fn chunks_are_decoded_wherever_the_bytes_were_cut() {
        let text = b"5\r\nhello\r\nA;name=\"value\" ;x\r\n, 12345678\r\n000\r\nDigest: x\r\n\r\nGET / HTTP/1.1\r\n";
        for cut in 0..text.len() {
            let (body, rest) = read(text, cut, 15).unwrap_or_else(|status| panic!("{cut}: {status}"));
            assert_eq!(
                (body.as_slice(), rest.as_slice()),
                (&b"hello, 12345678"[..], &b"GET / HTTP/1.1\r\n"[..]),
                "{cut}"
            );
        }
    }

    #[test]
    fn malformed_chunks_are_rejected() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1024));
        let many_trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(4000));
        for (label, expected, text) in [
            ("no digits", 400, "\r\n"),
            ("no hex", 400, "g\r\n"),
            ("a sign", 400, "+1\r\na\r\n"),
            ("a prefix", 400, "0x1\r\na\r\n"),
            ("a blank first", 400, " 1\r\na\r\n"),
            ("a blank after", 400, "1 \r\na\r\n"),
            ("something else after", 400, "1 2\r\na\r\n"),
            ("a line feed alone", 400, "1\na\r\n"),
            ("a carriage return alone", 400, "1;a\rb\r\n"),
            ("data that is too long", 400, "1\r\nab\r\n"),
            ("no line break after data", 400, "1\r\na\n"),
            ("a trailer without a colon", 400, "0\r\nabc\r\n\r\n"),
            ("a control character", 400, "1;\x00\r\n"),
            ("a long extension", 400, &long_extension),
            ("too many trailers", 400, &many_trailers),
            ("a large chunk", 413, "65\r\n"),
            ("a size beyond usize", 413, "fffffffffffffffff\r\n"),
            ("a sum beyond usize", 413, "1\r\na\r\nffffffffffffffff\r\n"),
        ] {
            assert_eq!(read(text.as_bytes(), 7, 100).err(), Some(expected), "{label}");
        }
    }

    #[test]
    fn limit_is_exact() {
        assert!(read(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 0, 3).is_ok_and(|(body, _)| body == b"abc"));
        assert_eq!(read(b"2\r\nab\r\n2\r\n", 0, 3).err(), Some(413));
    }

    #[test]
    fn chunks_of_one_byte_are_accepted() {
        let text = [b"1\r\na\r\n".repeat(50_000), b"0\r\n\r\n".to_vec()].concat();
        assert!(read(&text, 0, 50_000).is_ok_and(|(body, _)| body.len() == 50_000));
    }

    proptest! {
        #[test]
        fn no_input_panics_or_exceeds_the_limit(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b';'), any::<u8>()], 0..200),
            received in 0_usize..200,
        ) {
            if let Ok((body, _)) = read(&bytes, received, 20) {
                prop_assert!(body.len() <= 20);
            }
        }
    }
}
