//! The head of a request: found in the bytes, parsed, and refused if there are two ways to read it. No sockets here.

use std::net::SocketAddr;

use crate::server::wire::{Head, Limits, Response, Target};

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// There is none.
    None,
    /// So many bytes.
    Length(usize),
    /// Chunks.
    Chunked,
}

/// What the gate itself has to know of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framing {
    /// How the body is delimited.
    pub body: BodyKind,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The method as it was sent.
    pub method: String,
}

/// The longest method that is not plainly nonsense.
const LONGEST_METHOD: usize = 32;
/// What the request line has besides its target.
const REQUEST_LINE_REST: usize = LONGEST_METHOD + " HTTP/1.1\r\n".len() + 1;
/// Headers of which a second one would make the meaning depend on the reader.
const ONCE: [&str; 5] = ["authorization", "content-length", "expect", "host", "transfer-encoding"];

/// Looks for the end of the head. `checked` is how far the bytes have been looked at before.
pub fn end(bytes: &[u8], checked: &mut usize, limits: &Limits) -> Result<Option<usize>, Response> {
    if bytes.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        // TLS, for example: no need to wait for the end of a line that never comes.
        return Err(Response::refusal(400, "this is no HTTP request"));
    }
    let mut found = None;
    while let Some(at) = memchr::memchr(b'\n', &bytes[*checked..]).map(|at| at + *checked) {
        if at == 0 || bytes[at - 1] != b'\r' {
            return Err(Response::refusal(400, "a line of the head does not end with CR and LF"));
        }
        *checked = at + 1;
        if bytes[..at].ends_with(b"\r\n\r") {
            found = Some(at + 1);
            break;
        }
    }
    if memchr::memchr(b'\n', &bytes[..*checked]).is_none() && bytes.len() > limits.target_bytes + REQUEST_LINE_REST {
        return Err(target_too_long(limits));
    }
    if found.unwrap_or(bytes.len()) > limits.head_bytes {
        let text = format!("the request's head is larger than {} bytes", limits.head_bytes);
        return Err(Response::refusal(431, &text));
    }
    if found.is_none() {
        *checked = bytes.len();
    }
    Ok(found)
}

/// Parses a whole head.
pub fn parse(bytes: &[u8], peer: SocketAddr, limits: &Limits) -> Result<(Head, Framing), Response> {
    let bad = |text: &str| Response::refusal(400, text);
    let minor = version(bytes)?;
    let mut slots = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut parsed = httparse::Request::new(&mut slots);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Response::refusal(431, &format!("the request has more than {} headers", limits.headers)));
        }
        Ok(_) | Err(_) => return Err(bad("the request's head is malformed")),
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(bad("the request line is malformed"));
    };
    if target.len() > limits.target_bytes {
        return Err(target_too_long(limits));
    }
    if method.len() > LONGEST_METHOD {
        return Err(bad("the request's method is too long"));
    }
    let target = Target::parse(target).map_err(|error| bad(&format!("the request's target {error}")))?;
    let mut headers = Vec::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        if !header.value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return Err(bad("a header's value has a character that is not visible ASCII"));
        }
        let value = String::from_utf8_lossy(header.value).trim().to_owned();
        headers.push((header.name.to_ascii_lowercase(), value));
    }
    let framing_method = method.to_owned();
    let method = if method == "HEAD" { "GET" } else { method }.to_owned();
    let head = Head { method, target, headers, peer };
    let (body, expects_continue) = framing(&head, minor, limits)?;
    Ok((head, Framing { body, expects_continue, method: framing_method }))
}

/// The minor version, from a request line of exactly three parts.
fn version(bytes: &[u8]) -> Result<u8, Response> {
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match parts[..] {
        [_, _, b"HTTP/1.1"] => Ok(1),
        [_, _, b"HTTP/1.0"] => Ok(0),
        [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Response::refusal(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"))
        }
        _ => Err(Response::refusal(400, "the request line is malformed")),
    }
}

/// How the body is delimited; whatever could be read in two ways is refused.
fn framing(head: &Head, minor: u8, limits: &Limits) -> Result<(BodyKind, bool), Response> {
    let bad = |text: &str| Response::refusal(400, text);
    for name in ONCE {
        if head.headers.iter().filter(|(each, _)| each == name).count() > 1 {
            return Err(bad(&format!("the header {name} is there more than once")));
        }
    }
    if minor == 1 && head.header("host").is_none() {
        return Err(bad("the header host is missing"));
    }
    let body = match (head.header("content-length"), head.header("transfer-encoding")) {
        (Some(_), Some(_)) => return Err(bad("content-length and transfer-encoding exclude each other")),
        (None, None) => BodyKind::None,
        (None, Some(_)) if minor == 0 => return Err(bad("HTTP/1.0 knows no transfer-encoding")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => BodyKind::Chunked,
        (None, Some(_)) => return Err(bad("the only transfer-encoding that is understood is chunked")),
        (Some(digits), None) => {
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(bad("content-length is no number"));
            }
            // What does not fit into the type is too large as well.
            match digits.parse::<usize>() {
                Ok(0) => BodyKind::None,
                Ok(length) if length <= limits.body_bytes => BodyKind::Length(length),
                _ => return Err(body_too_large(limits)),
            }
        }
    };
    let expects_continue = match head.header("expect") {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("100-continue") => minor == 1 && body != BodyKind::None,
        Some(_) => return Err(Response::refusal(417, "the only expectation that is understood is 100-continue")),
    };
    Ok((body, expects_continue))
}

/// The refusal of a body.
pub fn body_too_large(limits: &Limits) -> Response {
    Response::refusal(413, &format!("the request's body is larger than {} bytes", limits.body_bytes))
}

fn target_too_long(limits: &Limits) -> Response {
    Response::refusal(414, &format!("the request's target is longer than {} bytes", limits.target_bytes))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::{BodyKind, Framing, Head, Limits, Response, end, parse};

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    fn read(text: &[u8]) -> Result<(Head, Framing), Response> {
        let limits = Limits::default();
        let end = end(text, &mut 0, &limits)?.unwrap_or_else(|| panic!("no end: {}", text.escape_ascii()));
        parse(&text[..end], PEER, &limits)
    }

    #[test]
    fn a_head_is_taken_apart() {
        let text = b"POST /check?package=a%2Fb HTTP/1.1\r\nHost: x\r\nX-Two:  a\tb \r\nCONTENT-LENGTH: 007\r\n\r\n{}";
        let (head, framing) = read(text).unwrap_or_else(|refused| panic!("{refused:?}"));
        assert_eq!((head.method.as_str(), head.target.path.as_str()), ("POST", "/check"));
        assert_eq!(head.target.query, [("package".to_owned(), "a/b".to_owned())]);
        assert_eq!(head.header("x-two"), Some("a\tb"));
        let expected = Framing { body: BodyKind::Length(7), expects_continue: false, method: "POST".to_owned() };
        assert_eq!(framing, expected);
    }

    #[test]
    fn an_end_is_found_wherever_the_bytes_were_cut() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore";
        let limits = Limits::default();
        for cut in 1..text.len() {
            let mut checked = 0;
            let first = end(&text[..cut], &mut checked, &limits).unwrap_or_else(|refused| panic!("{cut}: {refused:?}"));
            assert_eq!(first.is_some(), cut >= text.len() - 4, "{cut}");
            if first.is_none() {
                assert_eq!(end(text, &mut checked, &limits).ok().flatten(), Some(text.len() - 4), "{cut}");
            }
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let line = "POST / HTTP/1.1\r\nHost: x\r\n";
        let over = |count: usize| "a: b\r\n".repeat(count);
        for (label, status, text) in [
            ("a line feed alone", 400, "GET / HTTP/1.1\nHost: x\r\n\r\n".to_owned()),
            ("a line feed alone at the end", 400, format!("{line}a: b\n\r\n")),
            ("a carriage return alone", 400, format!("{line}a: b\rc: d\r\n\r\n")),
            ("an empty line first", 400, "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ("TLS", 400, "\x16\x03\x01\x02".to_owned()),
            ("no version", 400, "GET /\r\n\r\n".to_owned()),
            ("two blanks", 400, "GET  / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ("HTTP/2", 505, "PRI * HTTP/2.0\r\n\r\n".to_owned()),
            ("HTTP/1.2", 505, "GET / HTTP/1.2\r\nHost: x\r\n\r\n".to_owned()),
            ("HTTP/1.10", 400, "GET / HTTP/1.10\r\nHost: x\r\n\r\n".to_owned()),
            ("an absolute target", 400, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ("an authority", 400, "CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ("an asterisk", 400, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ("a long method", 400, format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "A".repeat(33))),
            ("no host", 400, "GET / HTTP/1.1\r\n\r\n".to_owned()),
            ("two hosts", 400, format!("{line}Host: y\r\n\r\n")),
            ("two tokens", 400, format!("{line}Authorization: a\r\nauthorization: b\r\n\r\n")),
            ("two lengths", 400, format!("{line}Content-Length: 1\r\nContent-Length: 1\r\n\r\n")),
            ("a list of lengths", 400, format!("{line}Content-Length: 1, 1\r\n\r\n")),
            ("a signed length", 400, format!("{line}Content-Length: +1\r\n\r\n")),
            ("a negative length", 400, format!("{line}Content-Length: -1\r\n\r\n")),
            ("a hexadecimal length", 400, format!("{line}Content-Length: 0x1\r\n\r\n")),
            ("an empty length", 400, format!("{line}Content-Length: \r\n\r\n")),
            ("length and chunks", 400, format!("{line}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")),
            ("another coding", 400, format!("{line}Transfer-Encoding: xchunked\r\n\r\n")),
            ("two codings", 400, format!("{line}Transfer-Encoding: gzip, chunked\r\n\r\n")),
            ("chunked twice", 400, format!("{line}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n")),
            ("chunks in HTTP/1.0", 400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
            ("a blank before the colon", 400, format!("{line}Transfer-Encoding : chunked\r\n\r\n")),
            ("a folded line", 400, format!("{line}a: b\r\n c\r\n\r\n")),
            ("no colon", 400, format!("{line}abc\r\n\r\n")),
            ("no name", 400, format!("{line}: abc\r\n\r\n")),
            ("a control character", 400, format!("{line}a: b\x01\r\n\r\n")),
            ("an umlaut", 400, format!("{line}a: ä\r\n\r\n")),
            ("another expectation", 417, format!("{line}Expect: 200-ok\r\n\r\n")),
            ("a body that is too large", 413, format!("{line}Content-Length: 1000000000000000\r\n\r\n")),
            ("a length of no type", 413, format!("{line}Content-Length: {}\r\n\r\n", "9".repeat(30))),
            ("one byte too many", 413, format!("{line}Content-Length: {}\r\n\r\n", (32 << 20) + 1)),
            ("headers", 431, format!("{line}{}\r\n", over(64))),
            ("a large header", 431, format!("{line}a: {}\r\n\r\n", "b".repeat(16 << 10))),
            ("a large header without an end", 431, format!("{line}a: {}", "b".repeat(16 << 10))),
            ("a long target", 414, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(8 << 10))),
            ("a long target without an end", 414, format!("GET /{}", "a".repeat(9 << 10))),
        ] {
            let refused = read(text.as_bytes()).err().unwrap_or_else(|| panic!("{label} was accepted"));
            assert_eq!(refused.status, status, "{label}");
            assert!(refused.body.starts_with(b"{\"ok\":false,\"error\":"), "{label}");
        }
    }

    #[test]
    fn what_is_just_within_the_limits_is_accepted() {
        let over = |count: usize| "a: b\r\n".repeat(count);
        for (label, body, text) in [
            ("headers", BodyKind::None, format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", over(63))),
            ("the target", BodyKind::None, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat((8 << 10) - 1))),
            ("no host in HTTP/1.0", BodyKind::None, "GET / HTTP/1.0\r\n\r\n".to_owned()),
            ("chunks", BodyKind::Chunked, "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n".to_owned()),
            (
                "the body",
                BodyKind::Length(32 << 20),
                format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 32 << 20),
            ),
        ] {
            let (_, framing) = read(text.as_bytes()).unwrap_or_else(|refused| panic!("{label}: {refused:?}"));
            assert_eq!(framing.body, body, "{label}");
        }
    }

    #[test]
    fn a_client_that_waits_is_only_told_to_go_on_when_there_is_a_body() {
        for (expected, text) in [
            (true, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"),
            (false, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"),
            (false, "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"),
        ] {
            let (_, framing) = read(text.as_bytes()).unwrap_or_else(|refused| panic!("{refused:?}"));
            assert_eq!(framing.expects_continue, expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_head_is_read_in_two_ways_whatever_is_in_it(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "Content-Length: 5", "content-length:7", "Transfer-Encoding: chunked", "transfer-encoding : chunked",
                    "Transfer-Encoding:chunked,", "\r\n", "\n", "\r", " ", "\t", ":", "a: b", "\u{b}", "\0", "ä", "Host: y",
                ]),
                0..12,
            ),
        ) {
            let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", parts.concat());
            let limits = Limits::default();
            if let Ok(Some(end)) = end(text.as_bytes(), &mut 0, &limits)
                && let Ok((head, framing)) = parse(&text.as_bytes()[..end], PEER, &limits)
            {
                // What a lenient reader would see in the same bytes.
                let lower = text[..end].to_lowercase();
                let lengths = lower.matches("content-length").count();
                let codings = lower.matches("transfer-encoding").count();
                let in_values = head.headers.iter().filter(|(_, value)| value.contains("ontent-") || value.contains("ransfer-")).count();
                if in_values == 0 {
                    proptest::prop_assert!(lengths + codings <= 1, "{text:?}");
                    let expected = match (lengths, codings) {
                        (1, 0) => matches!(framing.body, BodyKind::Length(_)),
                        (0, 1) => framing.body == BodyKind::Chunked,
                        _ => framing.body == BodyKind::None,
                    };
                    proptest::prop_assert!(expected, "{text:?}");
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let limits = Limits { headers: 4, target_bytes: 20, head_bytes: 200, ..Limits::default() };
            let _ = end(&bytes, &mut 0, &limits);
            let _ = parse(&bytes, PEER, &limits).is_ok();
            let line = [b"GET /", &bytes[..], b" HTTP/1.1\r\nhost: x\r\n\r\n"].concat();
            let _ = parse(&line, PEER, &limits).is_ok();
        }
    }
}
