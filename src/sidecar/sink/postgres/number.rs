//! JSON numbers as text: whether a column takes them without losing digits.
//!
//! No value passes through `f64`: where one appears it only answers whether the server's own conversion of the same
//! text is going to be exact.

use std::io::Write as _;

/// How a value gets on with its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The column holds the value.
    Exact,
    /// The column holds the nearest value it can.
    Rounded,
    /// The column cannot hold it.
    Misfit,
}

/// Every decimal number of so many digits survives the way through a double and back.
const DOUBLE_DIGITS: usize = 15;
/// No shortest spelling of a double has more digits.
const DOUBLE_LONGEST: usize = 17;
/// What `numeric` takes before and after the point.
const NUMERIC_BEFORE: i64 = 131_072;
const NUMERIC_AFTER: i64 = 16_383;
/// Digits of the largest bigint.
const BIGINT_DIGITS: i64 = 19;

/// A JSON number taken apart: `0.d₁d₂d₃… × 10^exponent`, without outer zeros.
struct Decimal<'a> {
    negative: bool,
    /// The digits before and after the point as they stand; zeros not yet removed.
    before: &'a [u8],
    after: &'a [u8],
    /// The written exponent, saturated.
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (negative, bytes) = match bytes.split_first()? {
            (b'-', rest) => (true, rest),
            _ => (false, bytes),
        };
        let mantissa = bytes.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(bytes.len());
        let exponent = match bytes.get(mantissa + 1..) {
            None => 0,
            Some(digits) => exponent(digits)?,
        };
        let point = bytes[..mantissa].iter().position(|byte| *byte == b'.').unwrap_or(mantissa);
        let (before, after) = (&bytes[..point], bytes.get(point + 1..mantissa).unwrap_or_default());
        let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
        (!before.is_empty() && digits(before) && digits(after)).then_some(Self { negative, before, after, exponent })
    }

    /// The digits from the first to the last that is not zero.
    fn significant(&self) -> impl DoubleEndedIterator<Item = u8> + Clone + '_ {
        let all = self.before.iter().chain(self.after).copied();
        let leading = all.clone().take_while(|digit| *digit == b'0').count();
        let trailing = all.clone().rev().take_while(|digit| *digit == b'0').count();
        let length = (self.before.len() + self.after.len()).saturating_sub(trailing);
        // `skip` on a double-ended chain keeps both ends; `take` needs the exact length.
        let kept = length.saturating_sub(leading);
        (0..kept).map(move |index| {
            let at = leading + index;
            if at < self.before.len() { self.before[at] } else { self.after[at - self.before.len()] }
        })
    }

    /// Where the point stands relative to the first significant digit.
    fn magnitude(&self) -> i64 {
        let leading = self.before.iter().chain(self.after).take_while(|digit| **digit == b'0').count();
        length(self.before.len()).saturating_sub(length(leading)).saturating_add(self.exponent)
    }

    fn is_zero(&self) -> bool {
        self.significant().next().is_none()
    }
}

fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn exponent(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text.split_first()? {
        (b'-', rest) => (-1, rest),
        (b'+', rest) => (1, rest),
        _ => (1, text),
    };
    let size = digits.iter().try_fold(0_i64, |sum, digit| {
        digit.is_ascii_digit().then(|| (sum * 10 + i64::from(digit - b'0')).min(1_000_000_000))
    })?;
    (!digits.is_empty()).then_some(sign * size)
}

/// Whether the text is a JSON number.
pub fn is_number(text: &str) -> bool {
    Decimal::parse(text).is_some()
}

/// Whether the text is a whole number without point and exponent that so many bytes hold.
pub fn fits_integer(text: &str, bytes: u8) -> bool {
    match bytes {
        2 => text.parse::<i16>().is_ok(),
        4 => text.parse::<i32>().is_ok(),
        _ => {
            // Eighteen digits always fit, and nearly all numbers are shorter.
            let digits = text.as_bytes();
            let digits = digits.strip_prefix(b"-").unwrap_or(digits);
            (!digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit))
                || text.parse::<i64>().is_ok()
        }
    }
}

/// The whole number that a number with a point or an exponent stands for (`1.0`, `2e3`).
pub fn as_integer(text: &str) -> Option<String> {
    let decimal = Decimal::parse(text)?;
    if decimal.is_zero() {
        return Some("0".to_owned());
    }
    let (count, magnitude) = (length(decimal.significant().count()), decimal.magnitude());
    if magnitude < count || magnitude > BIGINT_DIGITS {
        return None;
    }
    let mut whole = String::with_capacity(20);
    if decimal.negative {
        whole.push('-');
    }
    whole.extend(decimal.significant().map(char::from));
    whole.extend((count..magnitude).map(|_| '0'));
    Some(whole)
}

/// How a number gets on with `double precision`.
pub fn double_fit(text: &str) -> Fit {
    // Nearly all numbers are this short, and then the exponent cannot matter either.
    if text.len() <= DOUBLE_DIGITS && !text.contains(['e', 'E']) {
        return if is_number(text) { Fit::Exact } else { Fit::Misfit };
    }
    let (Some(decimal), Ok(double)) = (Decimal::parse(text), text.parse::<f64>()) else { return Fit::Misfit };
    let mut shortest = [0_u8; 32];
    let mut rest = &mut shortest[..];
    if write!(rest, "{double:e}").is_err() {
        return Fit::Rounded;
    }
    let left = rest.len();
    compare(&decimal, double.is_finite(), double == 0.0, &shortest[..shortest.len() - left], DOUBLE_LONGEST)
}

/// How a number gets on with `real`.
pub fn real_fit(text: &str) -> Fit {
    let (Some(decimal), Ok(real)) = (Decimal::parse(text), text.parse::<f32>()) else { return Fit::Misfit };
    compare(&decimal, real.is_finite(), real == 0.0, format!("{real:e}").as_bytes(), 9)
}

fn compare(decimal: &Decimal<'_>, finite: bool, zero: bool, shortest: &[u8], longest: usize) -> Fit {
    if decimal.is_zero() {
        return Fit::Exact;
    }
    // The server refuses what becomes infinite, and what becomes zero without being it.
    if !finite || zero {
        return Fit::Misfit;
    }
    if decimal.significant().nth(longest).is_some() {
        return Fit::Rounded;
    }
    let shortest = str::from_utf8(shortest).ok().and_then(Decimal::parse);
    let same = shortest.is_some_and(|shortest| {
        shortest.magnitude() == decimal.magnitude() && shortest.significant().eq(decimal.significant())
    });
    if same { Fit::Exact } else { Fit::Rounded }
}

/// Whether `numeric` takes the number whole, with at most so many digits before and after the point.
pub fn fits_numeric(text: &str, limits: Option<(i64, i64)>) -> bool {
    let Some(decimal) = Decimal::parse(text) else { return false };
    // What is written counts for the server's own limit, zeros included.
    let written = length(decimal.after.len()).saturating_sub(decimal.exponent);
    if decimal.magnitude() > NUMERIC_BEFORE || decimal.exponent > NUMERIC_BEFORE || written > NUMERIC_AFTER {
        return false;
    }
    let Some((before, after)) = limits else { return true };
    let digits = length(decimal.significant().count());
    decimal.is_zero() || (decimal.magnitude() <= before && digits - decimal.magnitude() <= after)
}

#[cfg(test)]
mod tests {
    use super::{Fit, as_integer, double_fit, fits_integer, fits_numeric, real_fit};

    #[test]
    fn integers_are_checked_against_their_range() {
        for (label, text, bytes, expected) in [
            ("largest bigint", "9223372036854775807", 8, true),
            ("one more", "9223372036854775808", 8, false),
            ("smallest bigint", "-9223372036854775808", 8, true),
            ("one less", "-9223372036854775809", 8, false),
            ("minus zero", "-0", 8, true),
            ("largest integer", "2147483647", 4, true),
            ("too large for integer", "2147483648", 4, false),
            ("too large for smallint", "32768", 2, false),
            ("a point", "1.5", 8, false),
            ("empty", "", 8, false),
            ("a sign alone", "-", 8, false),
        ] {
            assert_eq!(fits_integer(text, bytes), expected, "{label}");
        }
    }

    #[test]
    fn whole_numbers_are_recognised_in_any_spelling() {
        for (text, expected) in [
            ("1.0", Some("1")),
            ("-2.50e1", Some("-25")),
            ("2e3", Some("2000")),
            ("0.0", Some("0")),
            ("9007199254740993.0", Some("9007199254740993")),
            ("1.5", None),
            ("1e-1", None),
            ("1e30", None),
            ("abc", None),
        ] {
            assert_eq!(as_integer(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn doubles_tell_what_they_would_lose() {
        for (label, text, expected) in [
            ("short", "12.5", Fit::Exact),
            ("a repeated fraction", "0.1", Fit::Exact),
            ("seventeen digits of a double", "0.30000000000000004", Fit::Exact),
            ("a number between two doubles", "9007199254740993", Fit::Rounded),
            ("its even neighbour", "9007199254740992", Fit::Exact),
            ("the largest bigint", "9223372036854775807", Fit::Rounded),
            ("more digits than a double has", "0.12345678901234567890", Fit::Rounded),
            ("large", "1.797e308", Fit::Exact),
            ("too large", "1.8e308", Fit::Misfit),
            ("smallest", "5e-324", Fit::Exact),
            ("a small one with lost digits", "1.23456e-322", Fit::Rounded),
            ("too small", "1e-400", Fit::Misfit),
            ("zero with an exponent", "0e-400", Fit::Exact),
            ("trailing zeros", "100000000000000000000.000", Fit::Exact),
            ("no number", "NaN", Fit::Misfit),
        ] {
            assert_eq!(double_fit(text), expected, "{label}");
        }
        assert_eq!(real_fit("0.1"), Fit::Exact);
        assert_eq!(real_fit("16777217"), Fit::Rounded);
        assert_eq!(real_fit("1e39"), Fit::Misfit);
    }

    #[test]
    fn numerics_have_limits_too() {
        for (label, text, limits, expected) in [
            ("many digits", "123456789012345678901234567890.123456789", None, true),
            ("large", "1e131071", None, true),
            ("too large", "1e131072", None, false),
            ("small", "1e-16383", None, true),
            ("too small", "1e-16384", None, false),
            ("fits 8,2", "12345678.90", Some((8, 2)), true),
            ("too many before", "123456789", Some((8, 2)), false),
            ("too many after", "1.234", Some((8, 2)), false),
            ("zeros after do not count", "1.2300", Some((8, 2)), true),
        ] {
            assert_eq!(fits_numeric(text, limits), expected, "{label}");
        }
    }
}
