//! A request of a caller: its head and its body. The first byte is the number of bytes that arrive at a time.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use syncctl::server::guard::body::BodyReader;
use syncctl::server::guard::head::{Framing, Parsed, parse};
use syncctl::server::guard::limits::Limits;
use syncctl::server::guard::memory::{Memory, budget};
use syncctl::server::service::Response;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

fuzz_target!(|data: &[u8]| {
    let [step, bytes @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    let limits = Limits { headers: 16, head_bytes: 1024, target_bytes: 256, body_bytes: 1024, ..Limits::default() };
    let whole = parse(bytes, PEER, &limits);
    assert_cuts(bytes, step, &limits, &whole);
    let Ok(Some(Parsed { head, framing, length, .. })) = whole else { return };
    assert!(head.headers.iter().all(|(_, value)| !value.contains(['\r', '\n', '\0'])));
    assert!(head.headers.iter().filter(|(name, _)| name == "authorization").count() <= 1);
    let rest = &bytes[length..];
    let body = read(rest, rest.len().max(1), framing, &limits);
    assert_eq!(body, read(rest, step, framing, &limits));
    let Ok(body) = body else { return };
    assert!(body.len() <= limits.body_bytes);
    let expected = match framing {
        Framing::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
        Framing::Chunked => dechunk(rest),
    };
    assert_eq!(Some(body), expected);
});

/// Where a head ends, and what it is, does not depend on how it arrives.
fn assert_cuts(bytes: &[u8], step: usize, limits: &Limits, whole: &Result<Option<Parsed>, Response>) {
    for end in (0..bytes.len()).step_by(step) {
        match (parse(&bytes[..end], PEER, limits), whole) {
            (Ok(None), _) => {}
            (Ok(Some(part)), Ok(Some(whole))) => {
                assert_eq!((part.length, part.framing, &part.method), (whole.length, whole.framing, &whole.method));
                assert_eq!((&part.raw_target, &part.head.headers), (&whole.raw_target, &whole.head.headers));
                return;
            }
            (Err(_), Err(_)) => return,
            (part, _) => panic!("{} bytes: complete: {}", end, part.is_ok()),
        }
    }
}

/// The body, or the status of the response.
fn read(bytes: &[u8], step: usize, framing: Framing, limits: &Limits) -> Result<Vec<u8>, u16> {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut memory = Memory::new(&budget(limits), PEER.ip().into());
            let mut stream = Parts(bytes, step);
            let reader = BodyReader::new(&mut stream, Vec::new(), limits.body_bytes, limits, &mut memory);
            reader.read(framing).await.map_err(|response| response.status)
        })
    })
}

/// A connection on which some bytes arrive at a time.
struct Parts<'a>(&'a [u8], usize);

impl AsyncRead for Parts<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = self.1.min(self.0.len()).min(into.remaining());
        let (part, rest) = self.0.split_at(length);
        into.put_slice(part);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

/// The content of a body that was accepted.
fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let line = str::from_utf8(&bytes[..end]).ok()?;
        let digits = line.split([';', ' ', '\t']).next()?;
        let size = usize::from_str_radix(digits, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}
