//! How processes of this program on one machine pass secrets on: as one line in a pipe that only the receiver has, never in
//! a file, an argument or a variable.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Documents and credentials by the keys that they have in Secrets.
pub type Secrets = BTreeMap<String, Vec<u8>>;

/// Writes the line.
pub fn write(mut to: impl Write, secrets: &Secrets) -> io::Result<()> {
    let encoded: BTreeMap<&str, String> =
        secrets.iter().map(|(key, value)| (key.as_str(), STANDARD.encode(value))).collect();
    let mut line = serde_json::to_vec(&encoded)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads the line, and leaves what follows; `None` if the sender has ended before it.
pub fn read(mut from: impl BufRead) -> io::Result<Option<Secrets>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 || !line.ends_with('\n') {
        return Ok(None);
    }
    let encoded: BTreeMap<String, String> = serde_json::from_str(&line)?;
    let decode = |(key, value): (String, String)| Ok((key, STANDARD.decode(value).map_err(io::Error::other)?));
    encoded.into_iter().map(decode).collect::<io::Result<Secrets>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::{Secrets, read, write};

    #[test]
    fn what_is_written_is_read_and_half_a_line_is_nothing() {
        let secrets = Secrets::from([("a".to_owned(), b"\0\n\xff".to_vec()), ("b".to_owned(), Vec::new())]);
        let mut line = Vec::new();
        write(&mut line, &secrets).expect("memory");
        line.extend(b"more");
        let mut rest = line.as_slice();
        assert_eq!(read(&mut rest).expect("a line"), Some(secrets));
        assert_eq!(rest, b"more");
        assert_eq!(read(&line[..5]).expect("no error"), None);
        assert_eq!(read(&b""[..]).expect("no error"), None);
    }
}
