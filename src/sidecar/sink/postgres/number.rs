//! JSON numbers, from their text to the value of a numeric column.
//!
//! Values pass through `f64` only where the column is floating-point. Like the server, the parser rounds to the nearest
//! value, and ties to even.

use std::io::Write as _;

/// Whether a column can hold a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// The column holds the value.
    Exact,
    /// The column holds only the nearest value; the exact one is stored elsewhere.
    Rounded,
    /// The column holds the value without digits or characters that Postgres has no place for anywhere.
    Altered,
    /// The column cannot hold it.
    Misfit,
}

/// Decimal numbers of at most this many significant digits convert to a double and back unchanged.
const DOUBLE_EXACT_DIGITS: usize = 15;
/// The most significant digits in the shortest representation of a double, and of a real.
const DOUBLE_MAX_DIGITS: usize = 17;
const REAL_MAX_DIGITS: usize = 9;
/// Digits of the largest bigint.
const BIGINT_DIGITS: i64 = 19;

/// The parts of a JSON number.
pub struct Decimal<'a> {
    /// Below zero.
    pub negative: bool,
    /// The significant digits before and after the decimal point: from the first to the last that is not zero.
    before: &'a [u8],
    after: &'a [u8],
    /// The position of the decimal point relative to the first significant digit: the number is `0.d₁d₂… × 10^magnitude`.
    pub magnitude: i64,
    /// Digits after the decimal point with the exponent applied; negative if zeros follow before the point.
    pub scale: i64,
    /// Saturated at ± 10⁹.
    pub exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Reads a JSON number.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
            None => (number, 0),
        };
        let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if before.is_empty() || !is_digits(before) || !is_digits(after) {
            return None;
        }
        let scale = length(after) - exponent;
        let mut before = before.trim_start_matches('0');
        let mut magnitude = length(before) + exponent;
        let mut after = after;
        if before.is_empty() {
            let without_zeros = after.trim_start_matches('0');
            magnitude -= length(after) - length(without_zeros);
            after = without_zeros;
        }
        after = after.trim_end_matches('0');
        if after.is_empty() {
            before = before.trim_end_matches('0');
        }
        Some(Self { negative, before: before.as_bytes(), after: after.as_bytes(), magnitude, scale, exponent })
    }

    /// The significant digits.
    pub fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.before.iter().chain(self.after).copied()
    }

    /// The number of significant digits.
    pub fn precision(&self) -> i64 {
        i64::try_from(self.before.len() + self.after.len()).unwrap_or(i64::MAX)
    }

    /// Whether there are none.
    pub fn is_zero(&self) -> bool {
        self.precision() == 0
    }
}

fn length(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let size = digits.parse().unwrap_or(i64::MAX).min(1_000_000_000);
    (!digits.is_empty() && is_digits(digits)).then_some(if text.starts_with('-') { -size } else { size })
}

/// Whether the text is a JSON number.
pub fn is_number(text: &str) -> bool {
    Decimal::parse(text).is_some()
}

/// The integer value of a number in any notation (`1`, `1.0`, `2e3`); `None` for fractions and beyond bigint.
pub fn integer(text: &str) -> Option<i64> {
    if let Ok(whole) = text.parse() {
        return Some(whole);
    }
    let decimal = Decimal::parse(text)?;
    if decimal.is_zero() {
        return Some(0);
    }
    let (precision, magnitude) = (decimal.precision(), decimal.magnitude);
    if magnitude < precision || magnitude > BIGINT_DIGITS {
        return None;
    }
    let digits = decimal.digits().chain((precision..magnitude).map(|_| b'0'));
    // Negative, because the smallest bigint has no positive counterpart.
    let negated =
        digits.into_iter().try_fold(0_i64, |sum, digit| sum.checked_mul(10)?.checked_sub(i64::from(digit - b'0')))?;
    if decimal.negative { Some(negated) } else { negated.checked_neg() }
}

/// The nearest `double precision` and its fit; `None` beyond the range.
pub fn double(text: &str) -> Option<(f64, Fit)> {
    let double: f64 = text.parse().ok()?;
    // The fast path: nearly all numbers are this short.
    if text.len() <= DOUBLE_EXACT_DIGITS && !text.contains(['e', 'E']) {
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
    let fit = compare(&decimal, double.is_finite(), double == 0.0, shortest, DOUBLE_MAX_DIGITS);
    (fit != Fit::Misfit).then_some((double, fit))
}

/// The nearest `real` and its fit; `None` beyond the range.
pub fn real(text: &str) -> Option<(f32, Fit)> {
    let (decimal, real) = (Decimal::parse(text)?, text.parse::<f32>().ok()?);
    let fit = compare(&decimal, real.is_finite(), real == 0.0, format!("{real:e}").as_bytes(), REAL_MAX_DIGITS);
    (fit != Fit::Misfit).then_some((real, fit))
}

/// Compares a number with the shortest representation of the floating-point value that it was rounded to.
fn compare(decimal: &Decimal<'_>, finite: bool, zero: bool, shortest: &[u8], max_digits: usize) -> Fit {
    if decimal.is_zero() {
        return Fit::Exact;
    }
    // The server rejects overflow and underflow.
    if !finite || zero {
        return Fit::Misfit;
    }
    if decimal.digits().nth(max_digits).is_some() {
        return Fit::Rounded;
    }
    let shortest = str::from_utf8(shortest).ok().and_then(Decimal::parse);
    let same = shortest
        .is_some_and(|shortest| shortest.magnitude == decimal.magnitude && shortest.digits().eq(decimal.digits()));
    if same { Fit::Exact } else { Fit::Rounded }
}

#[cfg(test)]
mod tests {
    use super::{Fit, double, integer, real};

    #[test]
    fn integer_reads_any_notation() {
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
    fn doubles_report_lost_digits() {
        for (label, text, expected) in [
            ("short", "12.5", Fit::Exact),
            ("repeating binary fraction", "0.1", Fit::Exact),
            ("all digits of a double", "0.30000000000000004", Fit::Exact),
            ("between two doubles", "9007199254740993", Fit::Rounded),
            ("its even neighbor", "9007199254740992", Fit::Exact),
            ("largest bigint", "9223372036854775807", Fit::Rounded),
            ("more digits than a double has", "0.12345678901234567890", Fit::Rounded),
            ("large", "1.797e308", Fit::Exact),
            ("too large", "1.8e308", Fit::Misfit),
            ("smallest", "5e-324", Fit::Exact),
            ("subnormal with lost digits", "1.23456e-322", Fit::Rounded),
            ("too small", "1e-400", Fit::Misfit),
            ("zero with an exponent", "0e-400", Fit::Exact),
            ("trailing zeros", "100000000000000000000.000", Fit::Exact),
            ("not a number", "NaN", Fit::Misfit),
        ] {
            let fit = double(text).map_or(Fit::Misfit, |(_, fit)| fit);
            assert_eq!(fit, expected, "{label}");
        }
        assert_eq!(real("0.1"), Some((0.1, Fit::Exact)));
        assert_eq!(real("16777217"), Some((16_777_216.0, Fit::Rounded)));
        assert_eq!(real("1e39"), None);
    }
}
