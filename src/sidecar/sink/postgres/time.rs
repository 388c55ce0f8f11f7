//! Dates and times, from the text of a JSON string to the value that Postgres stores: microseconds or days since
//! 2000-01-01.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use super::number::Fit;

/// Days of each month in leap years.
const DAYS_OF_MONTH: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Days from 0001-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 730_119;
/// Days of 400 years.
const CYCLE_DAYS: i64 = 146_097;
/// Microseconds from 1970-01-01 to 2000-01-01.
const MICROS_OF_2000: i64 = 946_684_800_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = SECONDS_PER_DAY * MICROS_PER_SECOND;
/// The server's limits: the first value that it accepts, and the first one beyond.
const TIMESTAMP_RANGE: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;
const DATE_RANGE: std::ops::Range<i64> = -2_451_545..2_145_031_949;
/// Offsets from UTC are below 16 hours.
const MAX_OFFSET_SECONDS: i64 = 16 * 3600;
/// Digits of a second's fraction in microseconds, and in nanoseconds.
const MICRO_DIGITS: usize = 6;
const NANO_DIGITS: usize = 9;
const POWERS: [u32; 10] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
/// More digits of a year are beyond the limits.
const MAX_YEAR_DIGITS: usize = 7;

/// Whether the text is an instant in the format of RFC 3339: date, `T` or a space, time, offset.
pub fn is_instant(text: &str) -> bool {
    strict(text.as_bytes()).is_some_and(|instant| instant.zoned)
}

/// The microseconds of a `timestamptz`; a time without an offset is UTC. Altered if the text has a fraction of a
/// microsecond or a leap second. `None` if it is not a time, or beyond the range of Postgres.
pub fn timestamptz(text: &str) -> Option<(i64, Fit)> {
    if let Some(instant) = strict(text.as_bytes()) {
        return Some((instant.micros, fit(instant.exact)));
    }
    let (days, time) = date_and_time(text)?;
    let micros = (days.checked_mul(MICROS_PER_DAY)?)
        .checked_add(time.micros - time.offset.unwrap_or_default() * MICROS_PER_SECOND)?;
    TIMESTAMP_RANGE.contains(&micros).then_some((micros, fit(time.exact)))
}

/// The microseconds of a `timestamp`, in UTC.
pub fn timestamp(text: &str) -> Option<(i64, Fit)> {
    timestamptz(text)
}

/// The days of a `date`, from a date or a time that is midnight in UTC. The offset of a date alone is ignored.
pub fn date(text: &str) -> Option<i32> {
    let mut rest = Scanner::new(text);
    let days = match rest.date() {
        Some(days) if rest.is_empty() || rest.offset().is_some() && rest.is_empty() => days,
        _ => match timestamptz(text)? {
            (micros, Fit::Exact) if micros % MICROS_PER_DAY == 0 => micros / MICROS_PER_DAY,
            _ => return None,
        },
    };
    i32::try_from(days).ok().filter(|_| DATE_RANGE.contains(&days))
}

/// The microseconds of a `time`; one with an offset is converted to UTC.
pub fn time(text: &str) -> Option<(i64, Fit)> {
    let time = time_of_day(text)?;
    Some(match time.offset.unwrap_or_default() {
        // 24:00 stays.
        0 => (time.micros, fit(time.exact)),
        offset => ((time.micros - offset * MICROS_PER_SECOND).rem_euclid(MICROS_PER_DAY), fit(time.exact)),
    })
}

/// The microseconds of a `timetz`, and the seconds west of UTC; a time without an offset is UTC.
pub fn timetz(text: &str) -> Option<(i64, i32, Fit)> {
    let time = time_of_day(text)?;
    let west = i32::try_from(-time.offset.unwrap_or_default()).ok()?;
    Some((time.micros, west, fit(time.exact)))
}

fn fit(exact: bool) -> Fit {
    if exact { Fit::Exact } else { Fit::Altered }
}

/// The microseconds of this instant.
pub fn micros_of(at: Timestamp) -> i64 {
    at.as_microsecond() - MICROS_OF_2000
}

/// The instant of these microseconds.
pub fn instant_of(micros: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(micros.checked_add(MICROS_OF_2000)?).ok()
}

/// A timestamp as the existing implementation stored it in text columns, in UTC and without trailing zeros; `None` for
/// texts that it did not take for one.
pub fn reformatted(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    // Of the first and second millennium after 1000, as it tested the first digit.
    if bytes.len() > 35 || !matches!(bytes.first(), Some(b'1' | b'2')) {
        return None;
    }
    let zoned = strict(bytes)?.zoned;
    match (bytes.get(10)?, zoned) {
        (b'T', true) if !text.ends_with('Z') => Some(text.parse::<Timestamp>().ok()?.to_string()),
        (b'T', true) | (b' ', false) => {
            let fraction = text[19..].trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
            Some(format!("{}T{}{fraction}Z", &text[..10], &text[11..19]))
        }
        _ => None,
    }
}

fn is_leap(year: i64) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

/// Days since 2000-01-01. Year 0 is the one before the year 1. `None` if the month has no such day.
fn days(year: i64, month: u16, day: u16) -> Option<i64> {
    let last = u16::from(*DAYS_OF_MONTH.get(usize::from(month).checked_sub(1)?)?);
    if day == 0 || day > last || (month == 2 && day == 29 && !is_leap(year)) {
        return None;
    }
    let years = (year - 1).rem_euclid(400);
    let months: i64 = DAYS_OF_MONTH.iter().take(usize::from(month) - 1).map(|days| i64::from(*days)).sum();
    let no_leap_day = i64::from(month > 2 && !is_leap(year));
    let cycles = (year - 1).div_euclid(400) * CYCLE_DAYS;
    Some(cycles + years * 365 + years / 4 - years / 100 + months - no_leap_day + i64::from(day) - 1 - EPOCH_DAYS)
}

fn seconds(hour: u16, minute: u16, second: u16) -> i64 {
    (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second)
}

/// The microseconds of a fraction of a second with these digits, rounded like the server: through a double. Whether they
/// are exact.
fn fraction(digits: &[u8]) -> (i64, bool) {
    let number = |digits: &[u8]| digits.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    let (micros, rest) = digits.split_at(digits.len().min(MICRO_DIGITS));
    let below = number(micros) * POWERS[MICRO_DIGITS - micros.len()];
    if rest.iter().all(|digit| *digit == b'0') {
        return (i64::from(below), true);
    }
    // The digits after the ninth do not change the double much.
    let nanos = &digits[..digits.len().min(NANO_DIGITS)];
    let rounded = (f64::from(number(nanos)) / f64::from(POWERS[nanos.len()]) * 1e6).round_ties_even();
    (i64::from(below) + i64::from(rounded > f64::from(below)), false)
}

/// A point in time in the format of RFC 3339.
struct Instant {
    /// Since 2000-01-01.
    micros: i64,
    /// It has an offset.
    zoned: bool,
    /// It has no fraction of a microsecond.
    exact: bool,
}

/// Parses the format that nearly all sources use.
fn strict(text: &[u8]) -> Option<Instant> {
    let number = |at: usize, count: usize| {
        text.get(at..at + count)?
            .iter()
            .try_fold(0_u16, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u16::from(digit - b'0')))
    };
    let one_of = |at: usize, bytes: &[u8]| text.get(at).is_some_and(|byte| bytes.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let separated = one_of(4, b"-") && one_of(7, b"-") && one_of(10, b"T ") && one_of(13, b":") && one_of(16, b":");
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    if !separated || year == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days(i64::from(year), month, day)?;
    let (mut at, mut fraction_micros, mut exact) = (19, 0, true);
    if one_of(at, b".") {
        let count = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 || count > NANO_DIGITS {
            return None;
        }
        (fraction_micros, exact) = fraction(&text[at + 1..=at + count]);
        at += 1 + count;
    }
    let (offset, zoned) = match text.len() - at {
        0 => (0, false),
        1 if one_of(at, b"Z") => (0, true),
        6 if one_of(at, b"+-") && one_of(at + 3, b":") => {
            let (hours, minutes) = (number(at + 1, 2)?, number(at + 4, 2)?);
            if hours > 14 || minutes > 59 {
                return None;
            }
            let offset = seconds(hours, minutes, 0);
            (if text[at] == b'-' { -offset } else { offset }, true)
        }
        _ => return None,
    };
    let seconds = days * SECONDS_PER_DAY + seconds(hour, minute, second) - offset;
    Some(Instant { micros: seconds * MICROS_PER_SECOND + fraction_micros, zoned, exact })
}

/// A time of day.
#[derive(Clone, Copy)]
struct TimeOfDay {
    micros: i64,
    /// Seconds east of UTC.
    offset: Option<i64>,
    /// It has no fraction of a microsecond, and no leap second.
    exact: bool,
}

const MIDNIGHT: TimeOfDay = TimeOfDay { micros: 0, offset: None, exact: true };

/// Parses other formats: years before 1 and after 9999, eras, offsets without a colon or of seconds, the hour 24, leap
/// seconds, dates without a time. What is left, such as ISO weeks, is for the library.
fn date_and_time(text: &str) -> Option<(i64, TimeOfDay)> {
    scan_date_and_time(text).or_else(|| library(text))
}

fn scan_date_and_time(text: &str) -> Option<(i64, TimeOfDay)> {
    let mut rest = Scanner::new(text);
    let date = rest.date()?;
    let mut time = MIDNIGHT;
    if rest.one_of(b"Tt ").is_some() {
        time = rest.time()?;
    } else {
        time.offset = rest.offset();
    }
    rest.is_empty().then_some((date, time))
}

fn time_of_day(text: &str) -> Option<TimeOfDay> {
    let mut rest = Scanner::new(text);
    rest.one_of(b"Tt");
    rest.time().filter(|_| rest.is_empty())
}

/// Reads the parts of a time from the left.
struct Scanner<'t> {
    rest: &'t [u8],
    is_before_christ: bool,
}

impl<'t> Scanner<'t> {
    fn new(text: &'t str) -> Self {
        let text = text.trim();
        let without_era = text.strip_suffix(" BC").or_else(|| text.strip_suffix(" bc"));
        Self { rest: without_era.unwrap_or(text).as_bytes(), is_before_christ: without_era.is_some() }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        bytes.contains(first).then(|| self.rest = rest)?;
        Some(*first)
    }

    fn digits(&mut self, count: std::ops::RangeInclusive<usize>) -> Option<&'t [u8]> {
        let found = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !count.contains(&found) {
            return None;
        }
        let (digits, rest) = self.rest.split_at(found);
        self.rest = rest;
        Some(digits)
    }

    /// A number of two digits.
    fn pair(&mut self) -> Option<u16> {
        self.rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_digit)).map(|digits| {
            self.rest = &self.rest[2..];
            u16::from(digits[0] - b'0') * 10 + u16::from(digits[1] - b'0')
        })
    }

    /// Days since 2000-01-01.
    fn date(&mut self) -> Option<i64> {
        let sign = self.one_of(b"+-");
        let digits = self.digits(4..=MAX_YEAR_DIGITS)?;
        let year = digits.iter().fold(0_i64, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        let year = match (sign, self.is_before_christ) {
            (Some(b'-'), false) => -year,
            (None, true) if year > 0 => 1 - year,
            (_, true) => return None,
            (_, false) => year,
        };
        self.one_of(b"-")?;
        let month = self.pair()?;
        self.one_of(b"-")?;
        days(year, month, self.pair()?)
    }

    fn time(&mut self) -> Option<TimeOfDay> {
        let hour = self.pair()?;
        self.one_of(b":")?;
        let minute = self.pair()?;
        let second = if self.one_of(b":").is_some() { self.pair()? } else { 0 };
        let (mut fraction_micros, mut exact) = (0, second < 60);
        if self.one_of(b".,").is_some() {
            let (micros, is_exact) = fraction(self.digits(1..=usize::MAX)?);
            (fraction_micros, exact) = (micros, exact && is_exact);
        }
        let micros = seconds(hour, minute, second) * MICROS_PER_SECOND + fraction_micros;
        if hour > 24 || minute > 59 || second > 60 || (hour == 24 && micros > MICROS_PER_DAY) {
            return None;
        }
        Some(TimeOfDay { micros, offset: self.offset(), exact })
    }

    /// Seconds east of UTC. Consumes nothing if there is no valid offset.
    fn offset(&mut self) -> Option<i64> {
        let before = self.rest;
        let offset = self.signed_offset();
        if offset.is_none() {
            self.rest = before;
        }
        offset
    }

    fn signed_offset(&mut self) -> Option<i64> {
        self.one_of(b" ");
        if self.rest.eq_ignore_ascii_case(b"UTC") || self.rest.eq_ignore_ascii_case(b"GMT") {
            self.rest = &[];
            return Some(0);
        }
        let sign = match self.one_of(b"Zz+-")? {
            b'Z' | b'z' => return Some(0),
            sign => sign,
        };
        let mut parts = [self.pair()?, 0, 0];
        for part in &mut parts[1..] {
            if self.one_of(b":").is_some() || !self.is_empty() {
                *part = self.pair().filter(|part| *part < 60)?;
            }
        }
        let offset = seconds(parts[0], parts[1], parts[2]);
        (offset < MAX_OFFSET_SECONDS).then_some(if sign == b'-' { -offset } else { offset })
    }
}

/// Parses what else `jiff` knows: ISO weeks, dates without hyphens, names of time zones after an offset.
fn library(text: &str) -> Option<(i64, TimeOfDay)> {
    let text = text.trim();
    let at = if let Ok(at) = text.parse::<Timestamp>() {
        at
    } else if text.len() <= 10
        && let Ok(date) = text.parse::<Date>()
    {
        date.to_zoned(TimeZone::UTC).ok()?.timestamp()
    } else {
        let at = text.parse::<DateTime>().ok()?;
        // The parser ignores an offset here, which would change the instant.
        let zoned = text.get(19..).is_some_and(|rest| rest.contains(['Z', 'z', '+', '-', '[']));
        if zoned || text.len() < 16 {
            return None;
        }
        at.to_zoned(TimeZone::UTC).ok()?.timestamp()
    };
    let micros = micros_of(at);
    let day = micros.div_euclid(MICROS_PER_DAY);
    let exact = at.subsec_nanosecond() % 1000 == 0;
    Some((day, TimeOfDay { micros: micros.rem_euclid(MICROS_PER_DAY), offset: None, exact }))
}

#[cfg(test)]
mod tests {
    use super::{Fit, date, is_instant, reformatted, time, timestamp, timestamptz, timetz};
    use jiff::ToSpan as _;

    /// The fields of a `timestamp`, as jiff prints them; microseconds beyond its range.
    fn formatted(value: Option<(i64, Fit)>) -> Option<String> {
        let altered = |fit| if fit == Fit::Exact { "" } else { " altered" };
        let text = |micros| super::instant_of(micros).map_or_else(|| micros.to_string(), |instant| instant.to_string());
        value.map(|(micros, fit)| text(micros) + altered(fit))
    }

    #[test]
    fn timestamptz_parses_formats_to_the_microsecond() {
        for (label, text, expected) in [
            ("RFC 3339", "2024-02-29T23:59:59Z", Some("2024-02-29T23:59:59Z")),
            ("microseconds", "2024-01-31 10:00:00.123456+05:30", Some("2024-01-31T04:30:00.123456Z")),
            ("nanoseconds", "2024-01-31 10:00:00.123456789+05:30", Some("2024-01-31T04:30:00.123457Z altered")),
            ("more digits, all zero", "2024-01-31T10:00:00.123456000000Z", Some("2024-01-31T10:00:00.123456Z")),
            (
                "more digits than nanoseconds",
                "2024-01-31T10:00:00.1234564999999Z",
                Some("2024-01-31T10:00:00.123456Z altered"),
            ),
            ("without an offset", "2024-01-31T10:00:00", Some("2024-01-31T10:00:00Z")),
            ("without seconds", "2024-01-31T10:00+02:00", Some("2024-01-31T08:00:00Z")),
            ("date without a time", "2024-01-31", Some("2024-01-31T00:00:00Z")),
            ("date with an offset", "2024-01-31+02:00", Some("2024-01-30T22:00:00Z")),
            ("offset without a colon", "2024-01-31T10:00:00+0200", Some("2024-01-31T08:00:00Z")),
            ("offset of hours", "2024-01-31T10:00:00-02", Some("2024-01-31T12:00:00Z")),
            ("offset of hours, with a space", "2024-01-31 10:00:00.5 +02", Some("2024-01-31T08:00:00.5Z")),
            ("offset of seconds", "1890-01-01T00:00:00+00:53:28", Some("1889-12-31T23:06:32Z")),
            ("offset of 15 hours", "2024-01-31T10:00:00+15:59", Some("2024-01-30T18:01:00Z")),
            ("UTC", "2024-01-31 10:00:00 UTC", Some("2024-01-31T10:00:00Z")),
            ("lower case", "2024-01-31t10:00:00z", Some("2024-01-31T10:00:00Z")),
            ("zone in brackets", "2024-01-31T10:00:00+01:00[Europe/Berlin]", Some("2024-01-31T09:00:00Z")),
            ("leap second", "2016-12-31T23:59:60Z", Some("2017-01-01T00:00:00Z altered")),
            ("hour 24", "2023-12-31T24:00:00Z", Some("2024-01-01T00:00:00Z")),
            ("after hour 24", "2023-12-31T24:00:01Z", None),
            ("hour 25", "2023-12-31T25:00:00Z", None),
            ("before the epoch", "1969-03-01T00:00:00.000001Z", Some("1969-03-01T00:00:00.000001Z")),
            ("before the first leap day", "0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            ("century that is not a leap year", "1900-03-01T00:00:00-14:00", Some("1900-03-01T14:00:00Z")),
            ("rounded into the next year", "1999-12-31T23:59:59.9999996Z", Some("2000-01-01T00:00:00Z altered")),
            ("rounded, lower case", "1999-12-31t23:59:59.9999996z", Some("2000-01-01T00:00:00Z altered")),
            ("year 0 is 1 BC", "0000-02-29T00:00:00Z", Some("0000-02-29T00:00:00Z")),
            ("before the year 1", "-0043-03-15T00:00:00Z", Some("-000043-03-15T00:00:00Z")),
            ("era", "0044-03-15T00:00:00Z BC", Some("-000043-03-15T00:00:00Z")),
            ("era of a date", "0001-12-31 BC", Some("0000-12-31T00:00:00Z")),
            ("leap day of an era", "0002-02-29 BC", None),
            ("after the year 9999", "+10000-01-01T00:00:00Z", Some("252455616000000000")),
            ("without a sign", "10000-01-01T00:00:00Z", Some("252455616000000000")),
            ("the last year of Postgres", "294276-12-31T23:59:59.999999Z", Some("9223371331199999999")),
            ("beyond it", "294277-01-01T00:00:00Z", None),
            ("the first day of Postgres", "4714-11-24 BC", Some("-004713-11-24T00:00:00Z")),
            ("before it", "4714-11-23 BC", None),
            ("invalid day", "2023-02-29T00:00:00Z", None),
            ("month 13", "2023-13-01T00:00:00Z", None),
            ("month and day 0", "0000-00-00", None),
            ("infinity", "infinity", None),
            ("now", "now", None),
            ("empty", "", None),
            ("a number", "1700000000", None),
            ("text after the time", "2024-01-31T10:00:00Z and more", None),
        ] {
            assert_eq!(formatted(timestamptz(text)).as_deref(), expected, "{label}");
        }
    }

    #[test]
    fn times_of_day_may_have_an_offset() {
        for (text, expected, expected_tz) in [
            ("10:00:00", Some("36000000000"), Some("36000000000 0")),
            ("10:00", Some("36000000000"), Some("36000000000 0")),
            ("00:00:00.000001", Some("1"), Some("1 0")),
            ("00:00:00.0000016Z", Some("2 altered"), Some("2 0 altered")),
            ("T01:00:00+02:00", Some("82800000000"), Some("3600000000 -7200")),
            ("01:00:00-0230", Some("12600000000"), Some("3600000000 9000")),
            ("24:00:00", Some("86400000000"), Some("86400000000 0")),
            ("23:59:60", Some("86400000000 altered"), Some("86400000000 0 altered")),
            ("24:00:01", None, None),
            ("838:59:59", None, None),
            ("-01:00:00", None, None),
            ("10:00:00+16:00", None, None),
            ("2024-01-31T10:00:00Z", None, None),
            ("soon", None, None),
        ] {
            let altered = |fit| if fit == Fit::Exact { "" } else { " altered" };
            let found = time(text).map(|(micros, fit)| format!("{micros}{}", altered(fit)));
            assert_eq!(found.as_deref(), expected, "{text}");
            let found = timetz(text).map(|(micros, west, fit)| format!("{micros} {west}{}", altered(fit)));
            assert_eq!(found.as_deref(), expected_tz, "{text}");
        }
    }

    #[test]
    fn reformatted_times_are_in_utc_without_trailing_zeros() {
        for (text, expected) in [
            ("2024-05-01T00:00:00.000Z", Some("2024-05-01T00:00:00Z")),
            ("2024-05-01T00:00:00Z", Some("2024-05-01T00:00:00Z")),
            ("2024-05-01T00:00:00.120Z", Some("2024-05-01T00:00:00.12Z")),
            ("2024-05-01T00:00:00.123456789Z", Some("2024-05-01T00:00:00.123456789Z")),
            ("2024-05-01T01:30:00.500+02:00", Some("2024-04-30T23:30:00.5Z")),
            ("2024-05-01T00:00:00+00:00", Some("2024-05-01T00:00:00Z")),
            ("2024-05-01 10:20:30", Some("2024-05-01T10:20:30Z")),
            ("2024-05-01 10:20:30.100", Some("2024-05-01T10:20:30.1Z")),
            ("2024-05-01T10:20:30", None),
            ("2024-05-01 10:20:30Z", None),
            ("2024-05-01", None),
            ("0999-05-01T00:00:00Z", None),
            ("2023-02-29T00:00:00Z", None),
            ("soon", None),
        ] {
            assert_eq!(reformatted(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn is_instant_requires_date_time_and_offset() {
        for (text, expected) in [
            ("2024-01-31T10:00:00Z", true),
            ("2024-01-31T10:00:00", false),
            ("2024-01-31", false),
            ("2024-01-31T10:00:00.Z", false),
        ] {
            assert_eq!(is_instant(text), expected, "{text}");
        }
    }

    #[test]
    fn timestamp_and_date_convert_to_utc_without_loss() {
        let day = |days: i32| jiff::civil::date(2000, 1, 1) + i64::from(days).days();
        let formatted_day = |text| date(text).map(|days| day(days).to_string());
        assert_eq!(formatted(timestamp("2024-01-31T10:00:00+02:00")).as_deref(), Some("2024-01-31T08:00:00Z"));
        assert_eq!(formatted_day("2024-01-31").as_deref(), Some("2024-01-31"));
        assert_eq!(formatted_day("2024-01-31+02:00").as_deref(), Some("2024-01-31"));
        assert_eq!(formatted_day("2024-01-31Z").as_deref(), Some("2024-01-31"));
        assert_eq!(formatted_day("0001-01-01 BC").as_deref(), Some("0000-01-01"));
        assert_eq!(formatted_day("1999-12-31T00:00:00Z").as_deref(), Some("1999-12-31"));
        assert_eq!(formatted_day("2024-01-31T10:00:00Z"), None);
        assert_eq!(formatted_day("2024-01-31T00:00:00.0000001Z"), None);
        assert_eq!((date("5874897-12-31"), date("5874898-01-01")), (Some(2_145_031_948), None));
        assert_eq!((date("4714-11-24 BC"), date("4714-11-23 BC")), (Some(-2_451_545), None));
    }
}
