//! Whether a server may have the password in clear text. A server, or whoever answers in its place, chooses the method of
//! authentication; SCRAM and MD5 do not show the password to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tls::SslMode;
use crate::db::error::CleartextRefused;

/// Type of the messages of authentication.
const AUTHENTICATION: u8 = b'R';
/// Their codes: the server accepts the client, or asks for the password itself.
const ACCEPTED: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
/// Length of a message's type and length.
const HEAD: usize = 5;
/// The same with the code of a message of authentication.
const HEAD_AND_CODE: usize = HEAD + 4;

/// Where a password may be sent in clear text, by the mode that the user has chosen.
#[derive(Debug, Clone)]
pub(super) enum Cleartext {
    /// Whoever is on the way could read it, or could answer in the place of the server.
    Refuse,
    /// Encrypted, but to a server that is not verified; warns once for all connections of a target.
    Warn(Arc<AtomicBool>),
    /// To a verified server, or without TLS as the user has set it.
    Allow,
}

impl Cleartext {
    pub(super) fn of(mode: Option<SslMode>, verifies: bool) -> Self {
        match mode {
            None | Some(SslMode::Prefer) => Self::Refuse,
            Some(SslMode::Require) if !verifies => Self::Warn(Arc::default()),
            Some(_) => Self::Allow,
        }
    }
}

/// Reads along what a server sends, up to the end of the authentication.
pub(super) struct Guard {
    cleartext: Cleartext,
    /// The beginning of the current message.
    head: [u8; HEAD_AND_CODE],
    known: usize,
    /// Bytes of the current message that are still to come, and of no interest.
    rest: usize,
    is_over: bool,
}

impl Guard {
    pub(super) fn new(cleartext: Cleartext) -> Self {
        Self { cleartext, head: [0; HEAD_AND_CODE], known: 0, rest: 0, is_over: false }
    }

    /// Takes the next bytes of the server, before the client sees them.
    pub(super) fn observe(&mut self, mut bytes: &[u8]) -> Result<(), CleartextRefused> {
        while !self.is_over && !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let Some((byte, others)) = bytes.split_first() else { break };
            self.head[self.known] = *byte;
            self.known += 1;
            bytes = others;
            if self.known == if self.head[0] == AUTHENTICATION { HEAD_AND_CODE } else { HEAD } {
                self.end_of_head()?;
            }
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), CleartextRefused> {
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|offset| self.head[at + offset]));
        // The length counts itself, and not the type.
        let length = usize::try_from(number(1)).unwrap_or(usize::MAX).saturating_add(1);
        if self.head[0] == AUTHENTICATION {
            match (number(HEAD), &self.cleartext) {
                (ACCEPTED, _) => self.is_over = true,
                (CLEARTEXT_PASSWORD, Cleartext::Refuse) => return Err(CleartextRefused),
                (CLEARTEXT_PASSWORD, Cleartext::Warn(warned)) if !warned.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(
                        "a database server asks for the password in clear text, and sslmode=require does not verify who it \
                         is: set sslmode=verify-full"
                    );
                }
                _ => {}
            }
        }
        self.rest = length.saturating_sub(self.known);
        self.known = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Cleartext, Guard, SslMode};
    use crate::captured_logs::captured_logs;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&[kind], length.to_be_bytes().as_slice(), body].concat()
    }

    #[test]
    fn the_demand_for_a_password_is_found_wherever_it_is_and_however_it_arrives() {
        let demand = |code: u32| message(b'R', &code.to_be_bytes());
        let notice = message(b'N', b"SNOTICE\0\0");
        let (cleartext, accepted) = (demand(3), demand(0));
        let data = message(b'D', &cleartext);
        for (label, messages, expected) in [
            ("cleartext", vec![&cleartext], true),
            ("cleartext after a notice", vec![&notice, &cleartext], true),
            ("cleartext within another message", vec![&data, &accepted], false),
            ("rows after the authentication", vec![&accepted, &cleartext], false),
            ("MD5", vec![&message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4])], false),
            ("SCRAM", vec![&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")], false),
            ("SCRAM, then cleartext", vec![&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), &cleartext], true),
            ("an error", vec![&message(b'E', b"SFATAL\0\0")], false),
            ("an impossible length", vec![&vec![b'R', 0, 0, 0, 0, 0, 0, 0, 3]], true),
        ] {
            let bytes = messages.into_iter().flatten().copied().collect::<Vec<u8>>();
            for size in [1, 4, 7, bytes.len()] {
                let mut guard = Guard::new(Cleartext::Refuse);
                let found = bytes.chunks(size).any(|chunk| guard.observe(chunk).is_err());
                assert_eq!(found, expected, "{label} in pieces of {size}");
                let mut guard = Guard::new(Cleartext::of(Some(SslMode::VerifyFull), true));
                assert!(bytes.chunks(size).all(|chunk| guard.observe(chunk).is_ok()), "{label}");
            }
        }
    }

    #[test]
    fn an_unverified_server_gets_the_password_with_one_warning() {
        let cleartext = Cleartext::of(Some(SslMode::Require), false);
        let demand = message(b'R', &3_u32.to_be_bytes());
        let connect = || assert!(Guard::new(cleartext.clone()).observe(&demand).is_ok());
        let ((), first) = captured_logs(connect);
        assert!(first.contains("set sslmode=verify-full"), "{first}");
        assert_eq!(captured_logs(connect).1, "");
        let verified = Cleartext::of(Some(SslMode::Require), true);
        assert_eq!(captured_logs(|| Guard::new(verified).observe(&demand).is_ok()), (true, String::new()));
    }
}
