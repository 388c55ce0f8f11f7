//! Dates and times as sources write them.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use syncctl::sidecar::sink::postgres::number::Fit;
use syncctl::sidecar::sink::postgres::time;

const MICROS_PER_DAY: i64 = 86_400_000_000;
const MAX_OFFSET_SECONDS: i32 = 16 * 3600;

fuzz_target!(|text: &str| {
    time::timestamp(text);
    time::date(text);
    time::reformatted(text);
    if let Some((micros, _)) = time::timestamptz(text)
        && let Some(at) = time::instant_of(micros)
    {
        assert_eq!(time::timestamptz(&at.to_string()), Some((micros, Fit::Exact)), "{at}");
    }
    // The strict form, read by another parser, which ends a day earlier.
    if time::is_instant(text) && !text.starts_with("9999-12-3") {
        let at: Timestamp = text.parse().expect("an instant");
        let (micros, fit) = time::timestamptz(text).expect("an instant");
        let difference = time::micros_of(at) - micros;
        assert!(difference == 0 || fit == Fit::Altered && difference.abs() <= 1, "{at}: {micros}");
    }
    if let Some((micros, _)) = time::time(text) {
        assert!((0..=MICROS_PER_DAY + 1_000_000).contains(&micros), "{micros}");
    }
    if let Some((micros, west, _)) = time::timetz(text) {
        assert!(
            (0..=MICROS_PER_DAY + 1_000_000).contains(&micros) && west.abs() < MAX_OFFSET_SECONDS,
            "{micros} {west}"
        );
    }
});
