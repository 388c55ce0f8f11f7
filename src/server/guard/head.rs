//! Parses the head of a request and rejects whatever two readers could understand differently. Pure.

use std::net::SocketAddr;

use super::limits::Limits;
use crate::server::service::{Head, Response, Target};

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`, or no body.
    Length(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl Framing {
    /// Whether the body may have at most so many bytes. Chunks declare no length in advance, but are a body.
    pub fn fits(self, max: usize) -> bool {
        match self {
            Self::Length(length) => length <= max,
            Self::Chunked => max > 0,
        }
    }
}

/// A parsed head.
pub struct Parsed {
    /// For the service.
    pub head: Head,
    /// The method as sent.
    pub method: String,
    /// The target as sent.
    pub raw_target: String,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The bytes of the head.
    pub length: usize,
}

const MAX_METHOD_BYTES: usize = 32;
/// The request line without its target.
const REQUEST_LINE_REST: usize = MAX_METHOD_BYTES + " HTTP/1.1\r\n".len() + 1;
/// Headers that must not be repeated: which one counts would depend on the reader.
const SINGLE: [&str; 5] = ["authorization", "content-length", "expect", "host", "transfer-encoding"];

fn bad(text: &str) -> Response {
    Response::error(400, text)
}

/// Parses the head at the start of `bytes`; `None` if it is not complete yet. The error is the response.
pub fn parse(bytes: &[u8], peer: SocketAddr, limits: &Limits) -> Result<Option<Parsed>, Response> {
    // The parser would skip empty lines.
    if bytes.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Err(bad("not an HTTP request"));
    }
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    if line > limits.target_bytes + REQUEST_LINE_REST {
        return Err(target_too_long(limits));
    }
    let mut slots = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut parsed = httparse::Request::new(&mut slots);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Some(length),
        Ok(httparse::Status::Partial) => None,
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Response::error(431, &format!("the request has more than {} headers", limits.headers)));
        }
        Err(httparse::Error::Version) => return Err(Response::error(505, "only HTTP/1.0 and HTTP/1.1 are supported")),
        Err(error) => return Err(bad(&format!("malformed head: {error}"))),
    };
    if length.unwrap_or(bytes.len()) > limits.head_bytes {
        return Err(Response::error(431, &format!("the head is larger than {} bytes", limits.head_bytes)));
    }
    let (Some(length), Some(method), Some(raw_target), Some(minor)) =
        (length, parsed.method, parsed.path, parsed.version)
    else {
        return Ok(None);
    };
    if memchr::memchr_iter(b'\n', &bytes[..length]).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return Err(bad("a line of the head does not end with CR LF"));
    }
    if raw_target.len() > limits.target_bytes {
        return Err(target_too_long(limits));
    }
    if method.len() > MAX_METHOD_BYTES {
        return Err(bad("the method is too long"));
    }
    let target = Target::parse(raw_target).map_err(|error| bad(&format!("the request's target {error}")))?;
    let mut headers = Vec::with_capacity(parsed.headers.len());
    for header in parsed.headers.iter() {
        if !header.value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
            return Err(bad("the value of a header contains a character other than visible ASCII"));
        }
        let value = String::from_utf8_lossy(header.value).trim().to_owned();
        headers.push((header.name.to_ascii_lowercase(), value));
    }
    let (method, raw_target) = (method.to_owned(), raw_target.to_owned());
    let head_method = if method == "HEAD" { "GET".to_owned() } else { method.clone() };
    let head = Head { method: head_method, target, headers, peer, has_certificate: false };
    let (framing, expects_continue) = framing(&head, minor, limits)?;
    Ok(Some(Parsed { head, method, raw_target, framing, expects_continue, length }))
}

/// How the body is delimited, and whether the client waits for `100 Continue`.
fn framing(head: &Head, minor: u8, limits: &Limits) -> Result<(Framing, bool), Response> {
    for name in SINGLE {
        if head.headers.iter().filter(|(each, _)| each == name).count() > 1 {
            return Err(bad(&format!("the header {name} is repeated")));
        }
    }
    if minor == 1 && head.header("host").is_none() {
        return Err(bad("the header host is missing"));
    }
    let framing = match (head.header("content-length"), head.header("transfer-encoding")) {
        (Some(_), Some(_)) => return Err(bad("content-length and transfer-encoding exclude each other")),
        (None, None) => Framing::Length(0),
        (None, Some(_)) if minor == 0 => return Err(bad("HTTP/1.0 has no transfer-encoding")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        (None, Some(_)) => return Err(bad("the only supported transfer-encoding is chunked")),
        (Some(digits), None) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(bad("content-length is not a number"));
        }
        (Some(digits), None) => match digits.parse() {
            Ok(length) if length <= limits.body_bytes => Framing::Length(length),
            _ => return Err(body_too_large(limits.body_bytes)),
        },
    };
    let expects_continue = match head.header("expect") {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("100-continue") => minor == 1 && framing != Framing::Length(0),
        Some(_) => return Err(Response::error(417, "the only supported expectation is 100-continue")),
    };
    Ok((framing, expects_continue))
}

/// The response to a body over the limit.
pub fn body_too_large(max: usize) -> Response {
    let error = if max == 0 {
        "this request must not have a body".to_owned()
    } else {
        format!("the body is larger than {max} bytes")
    };
    Response::error(413, &error)
}

fn target_too_long(limits: &Limits) -> Response {
    Response::error(414, &format!("the target is longer than {} bytes", limits.target_bytes))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::{Framing, Limits, Parsed, Response, parse};

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    fn read(text: &[u8]) -> Result<Parsed, Response> {
        let parsed = parse(text, PEER, &Limits::default())?;
        Ok(parsed.unwrap_or_else(|| panic!("incomplete: {}", text.escape_ascii())))
    }

    #[test]
    fn head_is_parsed() {
        let text = b"POST /check?package=a%2Fb HTTP/1.1\r\nHost: x\r\nX-Two:  a\tb \r\nCONTENT-LENGTH: 007\r\n\r\n{}";
        let Parsed { head, method, raw_target, framing, expects_continue, length } =
            read(text).unwrap_or_else(|rejected| panic!("{rejected:?}"));
        assert_eq!((head.method.as_str(), head.target.path.as_str()), ("POST", "/check"));
        assert_eq!(head.target.query, [("package".to_owned(), "a/b".to_owned())]);
        assert_eq!(head.header("x-two"), Some("a\tb"));
        assert_eq!((method.as_str(), raw_target.as_str()), ("POST", "/check?package=a%2Fb"));
        assert_eq!((framing, expects_continue, length), (Framing::Length(7), false, text.len() - 2));
    }

    #[test]
    fn head_is_complete_at_its_empty_line() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore";
        for cut in 1..text.len() {
            let parsed = parse(&text[..cut], PEER, &Limits::default());
            let parsed = parsed.unwrap_or_else(|rejected| panic!("{cut}: {rejected:?}"));
            let expected = (cut >= text.len() - 4).then_some(text.len() - 4);
            assert_eq!(parsed.map(|parsed| parsed.length), expected, "{cut}");
        }
    }

    #[test]
    fn ambiguous_and_oversized_heads_are_rejected() {
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
            ("a length beyond usize", 413, format!("{line}Content-Length: {}\r\n\r\n", "9".repeat(30))),
            ("one byte too many", 413, format!("{line}Content-Length: {}\r\n\r\n", (32 << 20) + 1)),
            ("headers", 431, format!("{line}{}\r\n", over(64))),
            ("a large header", 431, format!("{line}a: {}\r\n\r\n", "b".repeat(16 << 10))),
            ("a large header without an end", 431, format!("{line}a: {}", "b".repeat(16 << 10))),
            ("a long target", 414, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(8 << 10))),
            ("a long target without an end", 414, format!("GET /{}", "a".repeat(9 << 10))),
        ] {
            let rejected = read(text.as_bytes()).err().unwrap_or_else(|| panic!("{label} was accepted"));
            assert_eq!(rejected.status, status, "{label}");
            assert!(rejected.body.starts_with(b"{\"ok\":false,\"error\":"), "{label}");
        }
    }

    #[test]
    fn heads_at_the_limits_are_accepted() {
        let over = |count: usize| "a: b\r\n".repeat(count);
        for (label, framing, text) in [
            ("headers", Framing::Length(0), format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", over(63))),
            (
                "the target",
                Framing::Length(0),
                format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat((8 << 10) - 1)),
            ),
            ("no host in HTTP/1.0", Framing::Length(0), "GET / HTTP/1.0\r\n\r\n".to_owned()),
            ("chunks", Framing::Chunked, "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n".to_owned()),
            (
                "the body",
                Framing::Length(32 << 20),
                format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 32 << 20),
            ),
        ] {
            let parsed = read(text.as_bytes()).unwrap_or_else(|rejected| panic!("{label}: {rejected:?}"));
            assert_eq!(parsed.framing, framing, "{label}");
        }
    }

    #[test]
    fn only_a_request_with_a_body_expects_continue() {
        for (expected, text) in [
            (true, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"),
            (false, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n"),
            (false, "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"),
        ] {
            let parsed = read(text.as_bytes()).unwrap_or_else(|rejected| panic!("{rejected:?}"));
            assert_eq!(parsed.expects_continue, expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn accepted_head_has_one_meaning(
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
            if let Ok(Some(Parsed { head, framing, length, .. })) = parse(text.as_bytes(), PEER, &limits) {
                // What a lenient reader would find in the same bytes.
                let lower = text[..length].to_lowercase();
                let lengths = lower.matches("content-length").count();
                let codings = lower.matches("transfer-encoding").count();
                let in_values = head.headers.iter().filter(|(_, value)| value.contains("ontent-") || value.contains("ransfer-")).count();
                if in_values == 0 {
                    proptest::prop_assert!(lengths + codings <= 1, "{text:?}");
                    let expected = match (lengths, codings) {
                        (1, 0) => matches!(framing, Framing::Length(1..)),
                        (0, 1) => framing == Framing::Chunked,
                        _ => framing == Framing::Length(0),
                    };
                    proptest::prop_assert!(expected, "{text:?}");
                }
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let limits = Limits { headers: 4, target_bytes: 20, head_bytes: 200, ..Limits::default() };
            let _ = parse(&bytes, PEER, &limits).is_ok();
            let line = [b"GET /", &bytes[..], b" HTTP/1.1\r\nhost: x\r\n\r\n"].concat();
            let _ = parse(&line, PEER, &limits).is_ok();
        }
    }
}
