//! HTTP/1.1 as Bulker needs it: the head of a request, chunks, and responses. Pure: bytes in, bytes out.
//!
//! HTTP clients pull the body of a request from a reader, and look for a response only after its end. Here rows are pushed
//! as they arrive, and a response in the middle of the body must stop them. Heads and chunk sizes are parsed by httparse.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use super::config::Endpoint;

/// Everything else is percent-encoded in a path segment.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Hexadecimal digits of a chunk's length, with leading zeros so that their number is fixed.
const DIGITS: usize = 8;
/// Length of the line that precedes the data of a chunk.
const CHUNK_HEAD: usize = DIGITS + 2;
/// The end of a chunked body.
pub const END: &[u8] = b"0\r\n\r\n";
/// Maximum number of headers of a response.
const MAX_HEADERS: usize = 128;
/// Maximum size of a response's body. Bulker's responses are below 1 KiB, except for the state of a wide table.
pub const MAX_BODY: usize = 4 << 20;

/// A request for `POST {url}/bulk/{destinationId}`.
pub struct Post<'a> {
    /// The Bulker instance.
    pub endpoint: &'a Endpoint,
    /// The destination within Bulker.
    pub destination_id: &'a str,
    /// The query parameters, in this order.
    pub query: &'a [(&'a str, &'a str)],
    /// The value of `Authorization`; secret.
    pub authorization: &'a str,
    /// The value of `X-Jitsu-Schema`.
    pub schema: Option<&'a str>,
}

impl Post<'_> {
    /// The request line and headers; secret.
    pub fn head(&self) -> String {
        let id = utf8_percent_encode(self.destination_id, UNRESERVED);
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(self.query).finish();
        let mut head = format!(
            "POST {}/bulk/{id}?{query} HTTP/1.1\r\nHost: {}\r\nUser-Agent: syncctl/{}\r\nAccept: application/json\r\n\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
             Authorization: {}\r\n",
            self.endpoint.prefix,
            self.endpoint.authority,
            env!("CARGO_PKG_VERSION"),
            self.authorization,
        );
        if let Some(schema) = self.schema {
            write!(head, "X-Jitsu-Schema: {schema}\r\n").expect("a String accepts any text");
        }
        head.push_str("\r\n");
        head
    }
}

/// A chunk under construction. Its length is filled in when it is sealed.
#[derive(Default)]
pub struct Chunk(Vec<u8>);

impl Chunk {
    /// Reuses the memory of a sealed chunk.
    pub fn reusing(mut memory: Vec<u8>) -> Self {
        memory.clear();
        Self(memory)
    }

    /// The buffer to append rows to.
    pub fn body(&mut self) -> &mut Vec<u8> {
        if self.0.is_empty() {
            self.0.resize(CHUNK_HEAD, b'\r');
            self.0[CHUNK_HEAD - 1] = b'\n';
        }
        &mut self.0
    }

    /// Size of the rows in bytes.
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(CHUNK_HEAD)
    }

    /// Allocated memory in bytes.
    pub fn memory(&self) -> usize {
        self.0.capacity()
    }

    /// The encoded chunk. Empty for an empty chunk, which would otherwise end the body.
    pub fn seal(mut self) -> Vec<u8> {
        let mut length = self.len();
        if length == 0 {
            self.0.clear();
            return self.0;
        }
        for digit in self.0[..DIGITS].iter_mut().rev() {
            *digit = b"0123456789abcdef"[length % 16];
            length /= 16;
        }
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

/// A complete response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, up to [`MAX_BODY`].
    pub body: String,
}

/// Removes interim responses such as `100 Continue`.
pub fn skip_interim(bytes: &mut Vec<u8>) {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if matches!(head.code, Some(100..=199)) => bytes.drain(..length),
            _ => return,
        };
    }
}

/// Parses the bytes received so far; `ended`: no more will follow. Returns `None` if the response is incomplete.
pub fn parse_response(bytes: &[u8], ended: bool) -> Result<Option<Response>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if ended => return Err("the response ends within its head".to_owned()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("the response is not HTTP: {error}")),
    };
    let status = head.code.unwrap_or_default();
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    let rest = &bytes[length..];
    let body = if matches!(status, 204 | 304) {
        Some(Vec::new())
    } else if header("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked")) {
        dechunk(rest)?
    } else if let Some(length) = header("content-length") {
        let length: usize = length.parse().map_err(|_| "the response has a malformed Content-Length".to_owned())?;
        rest.get(..length.min(MAX_BODY)).map(<[u8]>::to_vec)
    } else {
        ended.then(|| rest.to_vec())
    };
    match body {
        Some(body) => Ok(Some(Response { status, body: String::from_utf8_lossy(&body).into_owned() })),
        // A truncated body is better than none.
        None if ended || rest.len() >= MAX_BODY => {
            Ok(Some(Response { status, body: String::from_utf8_lossy(rest).into_owned() }))
        }
        None => Ok(None),
    }
}

/// The content of a chunked body; `None` if it is incomplete.
fn dechunk(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete((_, 0))) => return Ok(Some(body)),
            Ok(httparse::Status::Complete((head, length))) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let end = head.saturating_add(length);
                let Some(content) = bytes.get(head..end) else { return Ok(None) };
                body.extend_from_slice(content);
                bytes = bytes.get(end.saturating_add(2)..).unwrap_or_default();
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("the response has malformed chunks".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Post, Response, parse_response, skip_interim};
    use crate::sidecar::sink::bulker::config::Settings;
    use serde_json::json;

    #[test]
    fn heads_encode_path_and_query() {
        let config = json!({"url": "http://[::1]:3042/to/", "authToken": "t0ken"});
        let settings = Settings::parse(&config).expect("settings");
        let authorization = settings.authorization();
        let post = Post {
            endpoint: &settings.endpoint,
            destination_id: "a b/c",
            query: &[("tableName", "größe & more"), ("mode", "batch"), ("pk", "a"), ("pk", "b+c")],
            authorization: &authorization,
            schema: Some("{}"),
        };
        let expected = format!(
            "POST /to/bulk/a%20b%2Fc?tableName=gr%C3%B6%C3%9Fe+%26+more&mode=batch&pk=a&pk=b%2Bc HTTP/1.1\r\n\
             Host: [::1]:3042\r\nUser-Agent: syncctl/{}\r\nAccept: application/json\r\n\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
             Authorization: Bearer t0ken\r\nX-Jitsu-Schema: {{}}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(post.head(), expected);
        assert!(!Post { schema: None, ..post }.head().contains("X-Jitsu-Schema"));
    }

    #[test]
    fn sealed_chunks_start_with_their_length() {
        let mut chunk = Chunk::default();
        assert_eq!(chunk.len(), 0);
        chunk.body().extend_from_slice(&[b'x'; 300]);
        assert_eq!(chunk.len(), 300);
        let sealed = chunk.seal();
        assert!(sealed.starts_with(b"0000012c\r\nxx") && sealed.ends_with(b"x\r\n"), "{sealed:?}");
        assert_eq!(sealed.len(), 10 + 300 + 2);
        let again = Chunk::reusing(sealed);
        assert_eq!((again.len(), again.seal()), (0, Vec::new()), "an empty chunk would end the body");
    }

    #[test]
    fn responses_are_parsed_with_any_framing() {
        for (label, text, ended, expected) in [
            ("Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokrest", false, Some((200, "ok"))),
            ("incomplete", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false, None),
            ("truncated", "HTTP/1.1 400 Bad\r\nContent-Length: 9\r\n\r\nok", true, Some((400, "ok"))),
            ("no length", "HTTP/1.0 502 Bad Gateway\r\n\r\nbad", false, None),
            ("until the end of the connection", "HTTP/1.0 502 Bad Gateway\r\n\r\nbad", true, Some((502, "bad"))),
            (
                "chunks",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
                false,
                Some((200, "ok")),
            ),
            ("incomplete chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok", false, None),
            ("no body", "HTTP/1.1 204 No Content\r\n\r\n", false, Some((204, ""))),
            ("incomplete head", "HTTP/1.1 200", false, None),
        ] {
            let expected = expected.map(|(status, body)| Response { status, body: body.to_owned() });
            assert_eq!(parse_response(text.as_bytes(), ended), Ok(expected), "{label}");
        }
        for (label, text) in [
            ("another protocol", "SSH-2.0-OpenSSH\r\n"),
            ("incomplete head", "HTTP/1.1 200"),
            ("malformed Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
            ("malformed chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ] {
            assert!(parse_response(text.as_bytes(), true).is_err(), "{label}");
        }
    }

    #[test]
    fn interim_responses_are_skipped() {
        let mut bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 2".to_vec();
        skip_interim(&mut bytes);
        assert_eq!(bytes, b"HTTP/1.1 2");
    }
}
