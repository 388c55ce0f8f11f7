//! JSON numbers as text: whether a column takes them without losing digits, and what it then holds.
//!
//! No value passes through `f64` but those that become one, which the parser finds as the server would: the nearest one,
//! and of two equally near ones the even one.

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
/// Decimal digits in one of `numeric`.
const GROUP: i64 = 4;
/// The sign of a `numeric` below zero.
const NUMERIC_NEGATIVE: i64 = 0x4000;
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

    /// Digits after the point once the exponent is applied; below zero where zeros follow before the point.
    fn written_after(&self) -> i64 {
        length(self.after.len()).saturating_sub(self.exponent)
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

/// Whether the text is a whole number without point and exponent that a bigint holds.
pub fn is_bigint(text: &str) -> bool {
    text.parse::<i64>().is_ok()
}

/// The whole number that a number stands for in any spelling (`1`, `1.0`, `2e3`), if a bigint holds it.
pub fn integer(text: &str) -> Option<i64> {
    if let Ok(whole) = text.parse() {
        return Some(whole);
    }
    let decimal = Decimal::parse(text)?;
    if decimal.is_zero() {
        return Some(0);
    }
    let (count, magnitude) = (length(decimal.significant().count()), decimal.magnitude());
    if magnitude < count || magnitude > BIGINT_DIGITS {
        return None;
    }
    let digits = decimal.significant().chain((count..magnitude).map(|_| b'0'));
    // Downwards, because the smallest number is further from zero than the largest.
    let below =
        digits.into_iter().try_fold(0_i64, |sum, digit| sum.checked_mul(10)?.checked_sub(i64::from(digit - b'0')))?;
    if decimal.negative { Some(below) } else { below.checked_neg() }
}

/// The nearest `double precision`, and how the number gets on with it; `None` where there is none that is near.
pub fn double(text: &str) -> Option<(f64, Fit)> {
    let double: f64 = text.parse().ok()?;
    // Nearly all numbers are this short, and then the exponent cannot matter either.
    if text.len() <= DOUBLE_DIGITS && !text.contains(['e', 'E']) {
        return double.is_finite().then_some((double, Fit::Exact));
    }
    let decimal = Decimal::parse(text)?;
    let mut shortest = [0_u8; 32];
    let mut rest = &mut shortest[..];
    if write!(rest, "{double:e}").is_err() {
        return Some((double, Fit::Rounded));
    }
    let left = rest.len();
    let shortest = &shortest[..shortest.len() - left];
    let fit = compare(&decimal, double.is_finite(), double == 0.0, shortest, DOUBLE_LONGEST);
    (fit != Fit::Misfit).then_some((double, fit))
}

/// The nearest `real`, and how the number gets on with it.
pub fn real(text: &str) -> Option<(f32, Fit)> {
    let (decimal, real) = (Decimal::parse(text)?, text.parse::<f32>().ok()?);
    let fit = compare(&decimal, real.is_finite(), real == 0.0, format!("{real:e}").as_bytes(), 9);
    (fit != Fit::Misfit).then_some((real, fit))
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

/// Whether `numeric` without limits takes the number.
pub fn is_numeric(text: &str) -> bool {
    Decimal::parse(text).is_some_and(|decimal| fits_numeric(&decimal, None))
}

/// Whether `numeric` takes the number whole, with at most so many digits before and after the point.
fn fits_numeric(decimal: &Decimal<'_>, limits: Option<(i64, i64)>) -> bool {
    // What is written counts for the server's own limit, zeros included.
    if decimal.magnitude() > NUMERIC_BEFORE
        || decimal.exponent > NUMERIC_BEFORE
        || decimal.written_after() > NUMERIC_AFTER
    {
        return false;
    }
    let Some((before, after)) = limits else { return true };
    let digits = length(decimal.significant().count());
    decimal.is_zero() || (decimal.magnitude() <= before && digits - decimal.magnitude() <= after)
}

/// Writes a number as `numeric` with these limits takes it, if it does: groups of four decimal digits to both sides of
/// the point, after their number, the weight of the first one, the sign, and the digits that are shown after the point.
pub fn push_numeric(text: &str, limits: Option<(i64, i64)>, out: &mut Vec<u8>) -> bool {
    let Some(decimal) = Decimal::parse(text).filter(|decimal| fits_numeric(decimal, limits)) else { return false };
    let first = decimal.magnitude() - 1;
    let weight = if decimal.is_zero() { 0 } else { first.div_euclid(GROUP) };
    // The first group is filled up with zeros before its digits, the last one with zeros after them.
    let filling = if decimal.is_zero() { 0 } else { GROUP - 1 - first.rem_euclid(GROUP) };
    let start = out.len();
    let (mut groups, mut places, mut group) = (0_i64, filling, 0_u16);
    let mut digits = decimal.significant().peekable();
    while let Some(digit) = digits.next() {
        group = group * 10 + u16::from(digit - b'0');
        places += 1;
        while digits.peek().is_none() && places < GROUP {
            group *= 10;
            places += 1;
        }
        if places == GROUP {
            out.extend_from_slice(&group.to_be_bytes());
            (groups, places, group) = (groups + 1, 0, 0);
        }
    }
    let sign = if decimal.negative && groups > 0 { NUMERIC_NEGATIVE } else { 0 };
    let head = [groups, weight, sign, decimal.written_after().max(0)];
    // The limits above keep each of them within two bytes.
    let head = head.iter().flat_map(|part| part.to_be_bytes().into_iter().skip(6));
    out.splice(start..start, head);
    true
}

#[cfg(test)]
mod tests {
    use super::{Fit, double, integer, push_numeric, real};

    #[test]
    fn whole_numbers_are_recognised_in_any_spelling() {
        for (text, expected) in [
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("-9223372036854775809", None),
            ("9223372036854775807.0", Some(i64::MAX)),
            ("922337203685477580.8e1", None),
            ("-922337203685477580.8e1", Some(i64::MIN)),
            ("-0", Some(0)),
            ("1.0", Some(1)),
            ("-2.50e1", Some(-25)),
            ("2e3", Some(2000)),
            ("0.0", Some(0)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("1.5", None),
            ("1e-1", None),
            ("1e30", None),
            ("abc", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
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
            let fit = double(text).map_or(Fit::Misfit, |(_, fit)| fit);
            assert_eq!(fit, expected, "{label}");
        }
        assert_eq!(real("0.1"), Some((0.1, Fit::Exact)));
        assert_eq!(real("16777217"), Some((16_777_216.0, Fit::Rounded)));
        assert_eq!(real("1e39"), None);
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
            assert_eq!(push_numeric(text, limits, &mut Vec::new()), expected, "{label}");
        }
    }
}
