//! The requests of HTTP/1.1 as Bulker needs them: head and chunks. Pure: bytes out.
//!
//! HTTP clients pull the body of a request from a reader, and look for a response only after its end. Here rows are pushed
//! as they arrive, and a response in the middle of the body must stop them.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use crate::http_client::Endpoint;

/// Everything else is percent-encoded in a path segment.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Hexadecimal digits of a chunk's length, with leading zeros so that their number is fixed.
const DIGITS: usize = 8;
/// Length of the line that precedes the data of a chunk.
const CHUNK_HEAD: usize = DIGITS + 2;
/// The end of a chunked body.
pub const END: &[u8] = b"0\r\n\r\n";

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

#[cfg(test)]
mod tests {
    use super::{Chunk, Post};
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
}
