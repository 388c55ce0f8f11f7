//! A decoder of chunked bodies that is bounded in all it reads. Pure: bytes in, bytes out.

/// Bytes that may go into sizes, extensions and trailers, besides [`FRAMING_SHARE`].
const FRAMING: usize = 16 << 10;
/// And so many for each byte of the body: chunks of one byte need five.
const FRAMING_SHARE: usize = 8;
/// A chunk's size line with its extensions, and a trailer.
const LONGEST_LINE: usize = 1024;

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    /// It is not what the standard says.
    Malformed,
    /// It holds more than the limit, or announces it.
    TooLarge,
}

/// Where in the body the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Size,
    Data(usize),
    AfterData,
    Trailer,
    End,
}

/// Decodes one body.
#[derive(Debug)]
pub struct Chunks {
    place: Place,
    line: Vec<u8>,
    framing: usize,
    total: usize,
    limit: usize,
}

impl Chunks {
    /// For a body of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { place: Place::Size, line: Vec::new(), framing: 0, total: 0, limit }
    }

    /// Whether the body is complete.
    pub fn is_complete(&self) -> bool {
        self.place == Place::End
    }

    /// Takes bytes in, hands the body's out, and returns how many were taken: all, unless the body is complete.
    pub fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(&[u8])) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && self.place != Place::End {
            if let Place::Data(left) = self.place {
                let taken = left.min(bytes.len() - at);
                out(&bytes[at..at + taken]);
                at += taken;
                self.place = if taken == left { Place::AfterData } else { Place::Data(left - taken) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            self.framing += 1;
            if self.framing > FRAMING + self.total.saturating_mul(FRAMING_SHARE) || self.line.len() >= LONGEST_LINE {
                return Err(ChunkError::Malformed);
            }
            self.line.push(byte);
            match byte {
                b'\n' => self.line_ends()?,
                b'\r' => {}
                b'\t' | b' '..=b'~' if self.place != Place::AfterData => {}
                _ => return Err(ChunkError::Malformed),
            }
        }
        Ok(at)
    }

    fn line_ends(&mut self) -> Result<(), ChunkError> {
        let Some(line) = self.line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')) else {
            return Err(ChunkError::Malformed);
        };
        self.place = match self.place {
            Place::Size => {
                let size = size(line)?;
                self.total =
                    self.total.checked_add(size).filter(|total| *total <= self.limit).ok_or(ChunkError::TooLarge)?;
                if size == 0 { Place::Trailer } else { Place::Data(size) }
            }
            Place::AfterData if line.is_empty() => Place::Size,
            Place::Trailer if line.is_empty() => Place::End,
            // Trailers are read over: nothing here needs one.
            Place::Trailer if line.contains(&b':') => Place::Trailer,
            _ => return Err(ChunkError::Malformed),
        };
        self.line.clear();
        Ok(())
    }
}

/// The size at the start of a chunk's first line; extensions after it are read over.
fn size(line: &[u8]) -> Result<usize, ChunkError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || !(rest.is_empty() && digits == line.len() || rest.first() == Some(&b';')) {
        return Err(ChunkError::Malformed);
    }
    let digits = std::str::from_utf8(&line[..digits]).map_err(|_| ChunkError::Malformed)?;
    usize::from_str_radix(digits, 16).map_err(|_| ChunkError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::{ChunkError, Chunks};
    use proptest::prelude::*;

    /// Decodes in pieces of a given size; returns the body, what was taken, and whether it is complete.
    fn decode(bytes: &[u8], piece: usize, limit: usize) -> Result<(Vec<u8>, usize, bool), ChunkError> {
        let mut chunks = Chunks::new(limit);
        let (mut body, mut taken) = (Vec::new(), 0);
        for part in bytes.chunks(piece) {
            let fed = chunks.feed(part, |data| body.extend_from_slice(data))?;
            taken += fed;
            if fed < part.len() {
                break;
            }
        }
        Ok((body, taken, chunks.is_complete()))
    }

    #[test]
    fn a_body_is_decoded_however_it_was_cut() {
        let text = b"5\r\nhello\r\nA;name=\"value\" ;x\r\n, 12345678\r\n000\r\nDigest: x\r\n\r\nGET / HTTP/1.1\r\n";
        for piece in 1..text.len() {
            let (body, taken, complete) = decode(text, piece, 15).unwrap_or_else(|error| panic!("{piece}: {error:?}"));
            assert_eq!((body.as_slice(), complete), (&b"hello, 12345678"[..], true), "{piece}");
            assert_eq!(&text[taken..], b"GET / HTTP/1.1\r\n", "{piece}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long_extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1024));
        let many_trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(4000));
        for (label, expected, text) in [
            ("no digits", ChunkError::Malformed, "\r\n"),
            ("no hex", ChunkError::Malformed, "g\r\n"),
            ("a sign", ChunkError::Malformed, "+1\r\na\r\n"),
            ("a prefix", ChunkError::Malformed, "0x1\r\na\r\n"),
            ("a blank first", ChunkError::Malformed, " 1\r\na\r\n"),
            ("a blank after", ChunkError::Malformed, "1 \r\na\r\n"),
            ("something else after", ChunkError::Malformed, "1 2\r\na\r\n"),
            ("a line feed alone", ChunkError::Malformed, "1\na\r\n"),
            ("a carriage return alone", ChunkError::Malformed, "1;a\rb\r\n"),
            ("data that is too long", ChunkError::Malformed, "1\r\nab\r\n"),
            ("no line break after data", ChunkError::Malformed, "1\r\na\n"),
            ("a trailer without a colon", ChunkError::Malformed, "0\r\nabc\r\n\r\n"),
            ("a control character", ChunkError::Malformed, "1;\x00\r\n"),
            ("a long extension", ChunkError::Malformed, &long_extension),
            ("too many trailers", ChunkError::Malformed, &many_trailers),
            ("a large chunk", ChunkError::TooLarge, "65\r\n"),
            ("a size of no type", ChunkError::TooLarge, "fffffffffffffffff\r\n"),
            ("a sum of no type", ChunkError::TooLarge, "1\r\na\r\nffffffffffffffff\r\n"),
        ] {
            assert_eq!(decode(text.as_bytes(), 7, 100).err(), Some(expected), "{label}");
        }
    }

    #[test]
    fn the_limit_is_exact() {
        assert!(decode(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 100, 3).is_ok_and(|(body, ..)| body == b"abc"));
        assert_eq!(decode(b"2\r\nab\r\n2\r\n", 100, 3).err(), Some(ChunkError::TooLarge));
    }

    #[test]
    fn chunks_of_one_byte_are_no_reason_to_refuse() {
        let text = [b"1\r\na\r\n".repeat(50_000), b"0\r\n\r\n".to_vec()].concat();
        assert!(decode(&text, 4096, 50_000).is_ok_and(|(body, _, complete)| body.len() == 50_000 && complete));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_give_more_than_the_limit(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b';'), any::<u8>()], 0..200),
            piece in 1_usize..50,
        ) {
            if let Ok((body, taken, _)) = decode(&bytes, piece, 20) {
                prop_assert!(body.len() <= 20 && taken <= bytes.len());
            }
        }
    }
}
