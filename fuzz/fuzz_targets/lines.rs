//! Lines of bounded length from a pipe, and the messages in them.

#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use syncctl::airbyte::message::Message;
use syncctl::sidecar::lines::{Line, Lines};
use syncctl::sidecar::source::framing::{Framing, Piece};

/// How much of a line that is too long is reported.
const HEAD: usize = 256;

/// A line, or the beginning and the length of one that is too long.
#[derive(Debug, PartialEq)]
enum Read {
    Text(Vec<u8>),
    TooLong(Vec<u8>, u64),
}

fuzz_target!(|data: &[u8]| {
    let [limit, step, bytes @ ..] = data else { return };
    // What a pipe holds.
    let bytes = &bytes[..bytes.len().min(32 << 10)];
    let (limit, step) = (4 * usize::from(*limit), usize::from(*step) + 1);
    let lines = read(bytes, limit, step);
    let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if expected.last().is_some_and(|line| line.is_empty()) {
        expected.pop();
    }
    let expected: Vec<Read> = expected.into_iter().map(|line| whole(line, limit)).collect();
    assert_eq!(lines, expected);
    find_messages(&lines);
});

fn whole(line: &[u8], limit: usize) -> Read {
    if line.len() > limit {
        Read::TooLong(line[..line.len().min(HEAD)].to_vec(), line.len() as u64)
    } else {
        Read::Text(line.to_vec())
    }
}

/// Reads what arrives in parts of `step` bytes.
fn read(bytes: &[u8], limit: usize, step: usize) -> Vec<Read> {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let mut lines = Lines::new(File::from(OwnedFd::from(reader)), limit);
    let mut found = Vec::new();
    let mut drain = || loop {
        match lines.next(Duration::ZERO).expect("a line") {
            Line::Text(text) => found.push(Read::Text(text.to_vec())),
            Line::TooLong(head, length) => found.push(Read::TooLong(head.to_vec(), length)),
            Line::Idle | Line::Eof => return,
        }
    };
    for part in bytes.chunks(step) {
        writer.write_all(part).expect("a reader");
        drain();
    }
    drop(writer);
    drain();
    found
}

/// As the sidecar does: no message that is a whole line is lost.
fn find_messages(lines: &[Read]) {
    let mut framing = Framing::default();
    let (mut held, mut returned) = (0, 0);
    let mut take = |piece: Piece| returned += usize::from(matches!(piece, Piece::Message(_)));
    for line in lines {
        let Read::Text(line) = line else { continue };
        match Message::parse(line) {
            Message::Text => {
                let line = String::from_utf8_lossy(line);
                if framing.may_use(&line) {
                    framing.line(&line);
                }
            }
            message if framing.holds_back(&message) => {
                held += 1;
                framing.message(message.into_owned());
            }
            _ => {}
        }
        while let Some(piece) = framing.next() {
            take(piece);
        }
    }
    framing.end().map(&mut take);
    assert!(returned >= held, "{returned} of {held} messages");
}
