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
/// Limits of `numeric`: digits before and after the decimal point.
const NUMERIC_MAX_BEFORE: i64 = 131_072;
const NUMERIC_MAX_AFTER: i64 = 16_383;
/// Decimal digits per base-10000 digit of `numeric`.
const NUMERIC_GROUP: i64 = 4;
/// The sign field of a negative `numeric`.
const NUMERIC_NEGATIVE: i64 = 0x4000;
/// Digits of the largest bigint.
const BIGINT_DIGITS: i64 = 19;

/// The parts of a JSON number.
struct Decimal<'a> {
    negative: bool,
    /// The significant digits before and after the decimal point: from the first to the last that is not zero.
    before: &'a [u8],
    after: &'a [u8],
    /// The position of the decimal point relative to the first significant digit: the number is `0.d₁d₂… × 10^magnitude`.
    magnitude: i64,
    /// Digits after the decimal point with the exponent applied; negative if zeros follow before the point.
    scale: i64,
    /// Saturated at ± 10⁹.
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
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

    fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.before.iter().chain(self.after).copied()
    }

    /// The number of significant digits.
    fn precision(&self) -> i64 {
        i64::try_from(self.before.len() + self.after.len()).unwrap_or(i64::MAX)
    }

    fn is_zero(&self) -> bool {
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

/// Whether `numeric` without precision and scale can hold the number.
pub fn is_numeric(text: &str) -> bool {
    Decimal::parse(text).is_some_and(|decimal| fit_numeric(&decimal, None) == Fit::Exact)
}

/// Whether `numeric` can hold the number, with these limits of digits before and after the decimal point.
fn fit_numeric(decimal: &Decimal<'_>, limits: Option<(i64, i64)>) -> Fit {
    // The server's own limits also count zeros.
    if decimal.magnitude.max(decimal.exponent) > NUMERIC_MAX_BEFORE || decimal.scale > NUMERIC_MAX_AFTER {
        return Fit::Misfit;
    }
    let Some((before, after)) = limits.filter(|_| !decimal.is_zero()) else { return Fit::Exact };
    if decimal.precision() - decimal.magnitude <= after {
        return if decimal.magnitude <= before { Fit::Exact } else { Fit::Misfit };
    }
    // The server rounds, half away from zero. Nines in all places that stay carry into one more.
    let kept = usize::try_from(decimal.magnitude + after);
    let carries = kept.is_ok_and(|kept| {
        decimal.digits().take(kept).all(|digit| digit == b'9') && decimal.digits().nth(kept) >= Some(b'5')
    });
    if decimal.magnitude + i64::from(carries) <= before { Fit::Rounded } else { Fit::Misfit }
}

/// Appends the binary form of a `numeric`: the number of base-10000 digits, the weight of the first one, the sign, the
/// display scale, and the digits. Appends all digits also where the server rounds to the limits, and nothing if the
/// number does not fit.
pub fn push_numeric(text: &str, limits: Option<(i64, i64)>, out: &mut Vec<u8>) -> Fit {
    let Some(decimal) = Decimal::parse(text) else { return Fit::Misfit };
    let fit = fit_numeric(&decimal, limits);
    if fit == Fit::Misfit {
        return fit;
    }
    let first = decimal.magnitude - 1;
    let weight = if decimal.is_zero() { 0 } else { first.div_euclid(NUMERIC_GROUP) };
    // Groups are aligned at the decimal point: zeros pad the first group on the left and the last one on the right.
    let padding = if decimal.is_zero() { 0 } else { NUMERIC_GROUP - 1 - first.rem_euclid(NUMERIC_GROUP) };
    let start = out.len();
    let (mut groups, mut places, mut group) = (0_i64, padding, 0_u16);
    let mut digits = decimal.digits().peekable();
    while let Some(digit) = digits.next() {
        group = group * 10 + u16::from(digit - b'0');
        places += 1;
        while digits.peek().is_none() && places < NUMERIC_GROUP {
            group *= 10;
            places += 1;
        }
        if places == NUMERIC_GROUP {
            out.extend_from_slice(&group.to_be_bytes());
            (groups, places, group) = (groups + 1, 0, 0);
        }
    }
    let sign = if decimal.negative && groups > 0 { NUMERIC_NEGATIVE } else { 0 };
    let header = [groups, weight, sign, decimal.scale.max(0)];
    // Each of them fits into two bytes because of the limits above.
    let header = header.iter().flat_map(|part| part.to_be_bytes().into_iter().skip(6));
    out.splice(start..start, header);
    fit
}

#[cfg(test)]
mod tests {
    use super::{Fit, double, integer, push_numeric, real};

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

    #[test]
    fn push_numeric_checks_precision_and_scale() {
        let (price, cents, hundreds) = (Some((8, 2)), Some((0, 2)), Some((5, -2)));
        for (label, text, limits, expected) in [
            ("many digits", "123456789012345678901234567890.123456789", None, Fit::Exact),
            ("large", "1e131071", None, Fit::Exact),
            ("too large", "1e131072", None, Fit::Misfit),
            ("small", "1e-16383", None, Fit::Exact),
            ("too small", "1e-16384", None, Fit::Misfit),
            ("within the limits", "12345678.90", price, Fit::Exact),
            ("too many digits before the point", "123456789", price, Fit::Misfit),
            ("too many digits before and after the point", "123456789.001", price, Fit::Misfit),
            ("too many digits after the point", "1.234", price, Fit::Rounded),
            ("the largest value that is rounded down", "99999999.994", price, Fit::Rounded),
            ("rounded beyond the limits", "-99999999.995", price, Fit::Misfit),
            ("rounded to zero", "0.004", price, Fit::Rounded),
            ("rounded to the first place", "0.005", price, Fit::Rounded),
            ("rounded to zero by far", "1e-9", price, Fit::Rounded),
            ("no place before the point", "0.994", cents, Fit::Rounded),
            ("rounded to one without a place for it", "0.996", cents, Fit::Misfit),
            ("negative scale", "99949", hundreds, Fit::Rounded),
            ("rounded beyond a negative scale", "99950", hundreds, Fit::Misfit),
            ("trailing zeros do not count", "1.2300", price, Fit::Exact),
            ("not a number", "x", price, Fit::Misfit),
        ] {
            assert_eq!(push_numeric(text, limits, &mut Vec::new()), expected, "{label}");
        }
    }
}
