//! Responses of HTTP/1.1. Pure: bytes in. Heads and chunk sizes are parsed by httparse.

/// Maximum number of headers of a response.
const MAX_HEADERS: usize = 128;
/// Maximum size of a response's body. Bulker's responses are below 1 KiB, except for the state of a wide table.
pub const MAX_BODY: usize = 4 << 20;

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
    use super::{Response, parse_response, skip_interim};

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
