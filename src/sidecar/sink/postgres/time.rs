//! Dates and times, from the text of a JSON string to the value that Postgres stores: microseconds or days since
//! 2000-01-01.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// Days of each month in leap years.
const DAYS_OF_MONTH: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Days from 0001-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 730_119;
/// Seconds from 1970-01-01 to 2000-01-01.
const UNIX_SECONDS_OF_2000: i128 = 946_684_800;
/// Microseconds from 1970-01-01 to 2000-01-01.
const MICROS_OF_2000: i64 = 946_684_800_000_000;
const SECONDS_PER_DAY: i128 = 86_400;
const NANOS_PER_SECOND: i128 = 1_000_000_000;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// Whether the text is an instant in the format of RFC 3339: date, `T` or a space, time, offset.
pub fn is_instant(text: &str) -> bool {
    strict(text.as_bytes()).is_some_and(|(_, zoned)| zoned)
}

/// The microseconds of a `timestamptz`; a time without an offset is UTC. `None` if the text is not a time, or one of a
/// year before 1, which ISO 8601 and Postgres count differently.
pub fn timestamptz(text: &str) -> Option<i64> {
    strict(text.as_bytes()).map(|(micros, _)| micros).or_else(|| timestamp(text))
}

/// The microseconds of a `timestamp`, in UTC.
pub fn timestamp(text: &str) -> Option<i64> {
    let nanos = lenient(text)?;
    let seconds = i64::try_from(nanos.div_euclid(NANOS_PER_SECOND)).ok()?;
    Some(seconds * MICROS_PER_SECOND + fraction(u32::try_from(nanos.rem_euclid(NANOS_PER_SECOND)).ok()?, 9))
}

/// The days of a `date`, from a date or a time that is midnight in UTC.
pub fn date(text: &str) -> Option<i32> {
    let nanos = lenient(text)?;
    let day = SECONDS_PER_DAY * NANOS_PER_SECOND;
    if nanos % day == 0 { i32::try_from(nanos / day).ok() } else { None }
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
    let (_, zoned) = strict(bytes)?;
    match (bytes.get(10)?, zoned) {
        (b'T', true) if !text.ends_with('Z') => Some(text.parse::<Timestamp>().ok()?.to_string()),
        (b'T', true) | (b' ', false) => {
            let fraction = text[19..].trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
            Some(format!("{}T{}{fraction}Z", &text[..10], &text[11..19]))
        }
        _ => None,
    }
}

fn is_leap(year: u16) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days since 2000-01-01, for years from 1 on.
fn days(year: u16, month: u16, day: u16) -> i32 {
    let years = i32::from(year) - 1;
    let months: i32 = DAYS_OF_MONTH.iter().take(usize::from(month) - 1).map(|days| i32::from(*days)).sum();
    let no_leap_day = i32::from(month > 2 && !is_leap(year));
    years * 365 + years / 4 - years / 100 + years / 400 + months - no_leap_day + i32::from(day) - 1 - EPOCH_DAYS
}

fn seconds(hour: u16, minute: u16, second: u16) -> i64 {
    (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second)
}

fn micros(days: i32, seconds: i64) -> i64 {
    (i64::from(days) * 86_400 + seconds) * MICROS_PER_SECOND
}

/// The microseconds of a fraction of a second with this many digits, rounded like the server: through a double.
fn fraction(number: u32, digits: u32) -> i64 {
    if digits <= 6 {
        return i64::from(number) * 10_i64.pow(6 - digits);
    }
    let below = number / 10_u32.pow(digits - 6);
    let rounded = (f64::from(number) / f64::from(10_u32.pow(digits)) * 1e6).round_ties_even();
    i64::from(below) + i64::from(rounded > f64::from(below))
}

/// Parses the format that nearly all sources use. Returns microseconds since 2000-01-01 and whether there is an offset.
fn strict(text: &[u8]) -> Option<(i64, bool)> {
    let number = |at: usize, count: usize| {
        text.get(at..at + count)?
            .iter()
            .try_fold(0_u16, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u16::from(digit - b'0')))
    };
    let one_of = |at: usize, bytes: &[u8]| text.get(at).is_some_and(|byte| bytes.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let last = u16::from(*DAYS_OF_MONTH.get(usize::from(month).checked_sub(1)?)?);
    let separated = one_of(4, b"-") && one_of(7, b"-") && one_of(10, b"T ") && one_of(13, b":") && one_of(16, b":");
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    if !separated || year == 0 || day == 0 || day > last || (month == 2 && day == 29 && !is_leap(year)) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (mut at, mut fraction_micros) = (19, 0);
    if one_of(at, b".") {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit());
        let (count, value) =
            digits.take(10).fold((0_u32, 0_u64), |(count, sum), digit| (count + 1, sum * 10 + u64::from(digit - b'0')));
        if count == 0 || count > 9 {
            return None;
        }
        at += 1 + usize::try_from(count).ok()?;
        fraction_micros = fraction(u32::try_from(value).ok()?, count);
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
    Some((micros(days(year, month, day), seconds(hour, minute, second) - offset) + fraction_micros, zoned))
}

/// Parses other formats: offsets without a colon, dates without a time, lower case, ISO weeks. Returns nanoseconds since
/// 2000-01-01 UTC.
fn lenient(text: &str) -> Option<i128> {
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
    let nanos = at.as_nanosecond() - UNIX_SECONDS_OF_2000 * NANOS_PER_SECOND;
    (nanos >= -i128::from(EPOCH_DAYS) * SECONDS_PER_DAY * NANOS_PER_SECOND).then_some(nanos)
}

#[cfg(test)]
mod tests {
    use super::{date, is_instant, reformatted, timestamp, timestamptz};
    use jiff::{SignedDuration, Timestamp, ToSpan as _};

    fn formatted(micros: Option<i64>) -> Option<String> {
        let epoch: Timestamp = "2000-01-01T00:00:00Z".parse().expect("a time");
        micros.map(|micros| (epoch + SignedDuration::from_micros(micros)).to_string())
    }

    #[test]
    fn timestamptz_parses_formats_to_the_microsecond() {
        for (label, text, expected) in [
            ("RFC 3339", "2024-02-29T23:59:59Z", Some("2024-02-29T23:59:59Z")),
            ("fraction and offset", "2024-01-31 10:00:00.123456789+05:30", Some("2024-01-31T04:30:00.123457Z")),
            ("without an offset", "2024-01-31T10:00:00", Some("2024-01-31T10:00:00Z")),
            ("date without a time", "2024-01-31", Some("2024-01-31T00:00:00Z")),
            ("offset without a colon", "2024-01-31T10:00:00+0200", Some("2024-01-31T08:00:00Z")),
            ("offset of hours", "2024-01-31T10:00:00-02", Some("2024-01-31T12:00:00Z")),
            ("lower case", "2024-01-31t10:00:00z", Some("2024-01-31T10:00:00Z")),
            ("leap second", "2016-12-31T23:59:60Z", Some("2016-12-31T23:59:59Z")),
            ("before the epoch", "1969-03-01T00:00:00.000001Z", Some("1969-03-01T00:00:00.000001Z")),
            ("before the first leap day", "0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            ("century that is not a leap year", "1900-03-01T00:00:00-14:00", Some("1900-03-01T14:00:00Z")),
            ("rounded into the next year", "1999-12-31T23:59:59.9999996Z", Some("2000-01-01T00:00:00Z")),
            ("rounded, lower case", "1999-12-31t23:59:59.9999996z", Some("2000-01-01T00:00:00Z")),
            ("invalid day", "2023-02-29T00:00:00Z", None),
            ("month 13", "2023-13-01T00:00:00Z", None),
            ("hour 24", "2023-12-01T24:00:00Z", None),
            ("year 0", "0000-01-01T00:00:00Z", None),
            ("before the year 1", "-000044-03-15T00:00:00Z", None),
            ("after the year 9999", "+010000-01-01T00:00:00Z", None),
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
        assert_eq!(formatted_day("1999-12-31T00:00:00Z").as_deref(), Some("1999-12-31"));
        assert_eq!(formatted_day("2024-01-31T10:00:00Z"), None);
    }
}
