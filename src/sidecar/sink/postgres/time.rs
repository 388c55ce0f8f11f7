//! Dates and times in JSON strings: which of them Postgres takes, and how to write the others so that it does.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// Days of each month, February in leap years.
const DAYS: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Whether the text is an instant as RFC 3339 writes it: date, `T` or a space, time, offset.
pub fn is_instant(text: &str) -> bool {
    strict(text.as_bytes()).is_some_and(|zoned| zoned)
}

/// The text for a `timestamptz`; without an offset the time is UTC. `None` if it is no time, or one of a year that
/// Postgres and the standard do not agree about.
pub fn timestamptz(text: &str) -> Option<Cow<'_, str>> {
    if strict(text.as_bytes()).is_some() {
        return Some(Cow::Borrowed(text));
    }
    lenient(text).map(|at| Cow::Owned(at.to_string()))
}

/// The text for a `timestamp` of UTC.
pub fn timestamp(text: &str) -> Option<String> {
    lenient(text).map(|at| TimeZone::UTC.to_datetime(at).to_string())
}

/// The text for a `date`: a date, or a time that is midnight in UTC.
pub fn date(text: &str) -> Option<String> {
    let at = TimeZone::UTC.to_datetime(lenient(text)?);
    (at.time() == jiff::civil::Time::midnight()).then(|| at.date().to_string())
}

/// The spelling that nearly all sources use, read without any arithmetic; the answer is whether it has an offset.
fn strict(text: &[u8]) -> Option<bool> {
    let number = |at: usize, count: usize| {
        text.get(at..at + count)?
            .iter()
            .try_fold(0_u16, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u16::from(digit - b'0')))
    };
    let mark = |at: usize, marks: &[u8]| text.get(at).is_some_and(|byte| marks.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = u16::from(*DAYS.get(usize::from(month).checked_sub(1)?)?);
    let well_marked = mark(4, b"-") && mark(7, b"-") && mark(10, b"T ") && mark(13, b":") && mark(16, b":");
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    if !well_marked || year == 0 || day == 0 || day > last || (month == 2 && day == 29 && !leap) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    if mark(at, b".") {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        at += 1 + digits;
    }
    match text.len() - at {
        0 => Some(false),
        1 if mark(at, b"Z") => Some(true),
        6 if mark(at, b"+-") && mark(at + 3, b":") && number(at + 1, 2)? <= 14 && number(at + 4, 2)? <= 59 => {
            Some(true)
        }
        _ => None,
    }
}

/// Other spellings: offsets without a colon, dates alone, lower case, weeks.
fn lenient(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let at = if let Ok(at) = text.parse::<Timestamp>() {
        at
    } else if text.len() <= 10
        && let Ok(date) = text.parse::<Date>()
    {
        date.to_zoned(TimeZone::UTC).ok()?.timestamp()
    } else {
        let at = text.parse::<DateTime>().ok()?;
        // The parser skips an offset that it does not understand the use of; then the time would be another one.
        let zoned = text.get(19..).is_some_and(|rest| rest.contains(['Z', 'z', '+', '-', '[']));
        if zoned || text.len() < 16 {
            return None;
        }
        at.to_zoned(TimeZone::UTC).ok()?.timestamp()
    };
    (TimeZone::UTC.to_datetime(at).year() >= 1).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::{date, is_instant, timestamp, timestamptz};

    #[test]
    fn times_are_taken_or_written_anew() {
        for (label, text, expected) in [
            ("RFC 3339", "2024-02-29T23:59:59Z", Some("2024-02-29T23:59:59Z")),
            ("fraction and offset", "2024-01-31 10:00:00.123456789+05:30", Some("2024-01-31 10:00:00.123456789+05:30")),
            ("no offset is UTC", "2024-01-31T10:00:00", Some("2024-01-31T10:00:00")),
            ("date alone", "2024-01-31", Some("2024-01-31T00:00:00Z")),
            ("offset without a colon", "2024-01-31T10:00:00+0200", Some("2024-01-31T08:00:00Z")),
            ("offset of hours", "2024-01-31T10:00:00-02", Some("2024-01-31T12:00:00Z")),
            ("lower case", "2024-01-31t10:00:00z", Some("2024-01-31T10:00:00Z")),
            ("leap second", "2016-12-31T23:59:60Z", Some("2016-12-31T23:59:59Z")),
            ("no such day", "2023-02-29T00:00:00Z", None),
            ("month 13", "2023-13-01T00:00:00Z", None),
            ("hour 24", "2023-12-01T24:00:00Z", None),
            ("year 0", "0000-01-01T00:00:00Z", None),
            ("before the year 1", "-000044-03-15T00:00:00Z", None),
            ("beyond the year 9999", "+010000-01-01T00:00:00Z", None),
            ("infinity", "infinity", None),
            ("now", "now", None),
            ("empty", "", None),
            ("a number", "1700000000", None),
            ("trailing text", "2024-01-31T10:00:00Z and more", None),
        ] {
            assert_eq!(timestamptz(text).as_deref(), expected, "{label}");
        }
    }

    #[test]
    fn only_full_instants_type_a_column() {
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
    fn other_columns_take_what_they_hold_whole() {
        assert_eq!(timestamp("2024-01-31T10:00:00+02:00").as_deref(), Some("2024-01-31T08:00:00"));
        assert_eq!(date("2024-01-31").as_deref(), Some("2024-01-31"));
        assert_eq!(date("2024-01-31T00:00:00Z").as_deref(), Some("2024-01-31"));
        assert_eq!(date("2024-01-31T10:00:00Z"), None);
    }
}
