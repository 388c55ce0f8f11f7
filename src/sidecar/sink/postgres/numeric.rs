//! Numbers in the binary form of `numeric`.

use std::fmt::Write as _;

use memchr::memchr;

use super::number::{Decimal, Fit};

/// Limits of `numeric`: digits before and after the decimal point.
const NUMERIC_MAX_BEFORE: i64 = 131_072;
const NUMERIC_MAX_AFTER: i64 = 16_383;
/// Decimal digits per base-10000 digit of `numeric`.
const NUMERIC_GROUP: i64 = 4;
/// Bytes before the digits of a `numeric` in its binary form.
const NUMERIC_HEADER: usize = 8;
const SMALL_POWERS: [u16; 4] = [1, 10, 100, 1000];
/// The most digits of a short number.
const SHORT_DIGITS: usize = 32;
/// Base-10000 digits of a short number, of which the first one and the last one may be incomplete.
const SHORT_GROUPS: usize = SHORT_DIGITS / 4 + 2;
/// The sign field of a negative `numeric`.
const NUMERIC_NEGATIVE: i64 = 0x4000;

/// Whether `numeric` without precision and scale can hold the number.
pub fn is_valid(text: &str) -> bool {
    Decimal::parse(text).is_some_and(|decimal| fit(&decimal, None) == Fit::Exact)
}

/// Whether `numeric` can hold the number, with these limits of digits before and after the decimal point.
fn fit(decimal: &Decimal<'_>, limits: Option<(i64, i64)>) -> Fit {
    // The server's own limits also count zeros.
    if decimal.magnitude.max(decimal.exponent) > NUMERIC_MAX_BEFORE || decimal.scale > NUMERIC_MAX_AFTER {
        return Fit::Misfit;
    }
    let Some((before, after)) = limits.filter(|_| !decimal.is_zero()) else { return Fit::Exact };
    if decimal.precision() - decimal.magnitude <= after {
        return if decimal.magnitude <= before { Fit::Exact } else { Fit::Misfit };
    }
    // The server rounds, half away from zero. Nines in all remaining places carry into one more.
    let places = usize::try_from(decimal.magnitude + after);
    let carries = places.is_ok_and(|places| {
        decimal.digits().take(places).all(|digit| digit == b'9') && decimal.digits().nth(places) >= Some(b'5')
    });
    if decimal.magnitude + i64::from(carries) <= before { Fit::Rounded } else { Fit::Misfit }
}

/// Appends the binary form of a `numeric`: the number of base-10000 digits, the weight of the first one, the sign, the
/// display scale, and the digits. Appends all digits also where the server rounds to the limits, and nothing if the
/// number does not fit.
pub fn push(text: &str, limits: Option<(i64, i64)>, out: &mut Vec<u8>) -> Fit {
    if push_short(text.as_bytes(), limits, out) {
        return Fit::Exact;
    }
    let Some(decimal) = Decimal::parse(text) else { return Fit::Misfit };
    let fit = fit(&decimal, limits);
    if fit == Fit::Misfit {
        return fit;
    }
    let first = decimal.magnitude - 1;
    let weight = if decimal.is_zero() { 0 } else { first.div_euclid(NUMERIC_GROUP) };
    // Groups are aligned at the decimal point: zeros pad the first group on the left and the last one on the right.
    let padding = if decimal.is_zero() { 0 } else { NUMERIC_GROUP - 1 - first.rem_euclid(NUMERIC_GROUP) };
    let start = out.len();
    out.extend_from_slice(&[0; NUMERIC_HEADER]);
    let (mut groups, mut places, mut group) = (0_i64, padding, 0_u16);
    for digit in decimal.digits() {
        group = group * 10 + u16::from(digit - b'0');
        places += 1;
        if places == NUMERIC_GROUP {
            out.extend_from_slice(&group.to_be_bytes());
            (groups, places, group) = (groups + 1, 0, 0);
        }
    }
    if places > padding || (places > 0 && groups > 0) {
        let missing = usize::try_from(NUMERIC_GROUP - places).unwrap_or(0);
        out.extend_from_slice(&(group * SMALL_POWERS[missing]).to_be_bytes());
        groups += 1;
    }
    let sign = if decimal.negative && groups > 0 { NUMERIC_NEGATIVE } else { 0 };
    // Each of them fits into two bytes because of the limits above.
    for (at, part) in [groups, weight, sign, decimal.scale.max(0)].into_iter().enumerate() {
        out[start + 2 * at..start + 2 * at + 2].copy_from_slice(&part.to_be_bytes()[6..]);
    }
    fit
}

/// The same for numbers without an exponent that have few digits and are within the limits: nearly all.
fn push_short(text: &[u8], limits: Option<(i64, i64)>, out: &mut Vec<u8>) -> bool {
    let (negative, number) = text.strip_prefix(b"-").map_or((false, text), |number| (true, number));
    if number.is_empty() || number.len() > SHORT_DIGITS + 1 {
        return false;
    }
    let (before, after) = memchr(b'.', number).map_or((number, &[][..]), |at| (&number[..at], &number[at + 1..]));
    let is_within = |limit: i64, digits: &[u8]| usize::try_from(limit).is_ok_and(|limit| digits.len() <= limit);
    if before.is_empty() || limits.is_some_and(|limits| !is_within(limits.0, before) || !is_within(limits.1, after)) {
        return false;
    }
    let mut bytes = [0_u8; NUMERIC_HEADER + 2 * SHORT_GROUPS];
    // Groups are aligned at the decimal point. All counts are small.
    let (first, aligned) = before.split_at(before.len() % 4);
    let whole = aligned.chunks_exact(4).map(|digits| (digits, 1));
    let fraction = after.chunks(4).map(|digits| (digits, SMALL_POWERS[4 - digits.len()]));
    let (mut start, mut end, mut count) = (0, 0, 0);
    for (digits, power) in [(first, 1)].into_iter().filter(|(first, _)| !first.is_empty()).chain(whole).chain(fraction)
    {
        let mut group = 0_u16;
        for digit in digits {
            let value = digit.wrapping_sub(b'0');
            if value > 9 {
                return false;
            }
            group = group * 10 + u16::from(value);
        }
        bytes[NUMERIC_HEADER + 2 * count..NUMERIC_HEADER + 2 * count + 2]
            .copy_from_slice(&(group * power).to_be_bytes());
        count += 1;
        if group != 0 {
            end = count;
        } else if end == 0 {
            start = count;
        }
    }
    let groups = end.saturating_sub(start);
    let weight = if groups == 0 { 0 } else { before.len().div_ceil(4).wrapping_sub(1 + start) };
    let sign = if negative && groups > 0 { NUMERIC_NEGATIVE } else { 0 };
    let header = &mut bytes[2 * start..];
    header[..2].copy_from_slice(&groups.to_be_bytes()[6..]);
    header[2..4].copy_from_slice(&weight.to_be_bytes()[6..]);
    header[4..6].copy_from_slice(&sign.to_be_bytes()[6..]);
    header[6..8].copy_from_slice(&after.len().to_be_bytes()[6..]);
    out.extend_from_slice(&header[..NUMERIC_HEADER + 2 * groups]);
    true
}

/// The text of a `numeric` in its binary form, as the server writes it.
pub fn text(value: &[u8]) -> String {
    let part = |at: usize| value.get(2 * at..2 * at + 2).map_or(0, |part| i16::from_be_bytes([part[0], part[1]]));
    let (groups, weight, scale) = (i64::from(part(0)), i64::from(part(1)), i64::from(part(3)));
    let before = weight.max(0) + 1;
    let mut digits = String::new();
    for position in (-((scale + NUMERIC_GROUP - 1) / NUMERIC_GROUP)..before).rev() {
        let group = usize::try_from(weight - position).ok().filter(|_| weight - position < groups);
        // Writing to a String cannot fail.
        let _ = write!(digits, "{:04}", group.map_or(0, |group| part(4 + group)));
    }
    let (before, after) = digits.split_at(usize::try_from(before * NUMERIC_GROUP).unwrap_or(0));
    let whole = before.trim_start_matches('0');
    let sign = if i64::from(part(2)) == NUMERIC_NEGATIVE { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    let after = &after[..usize::try_from(scale).unwrap_or(0)];
    format!("{sign}{}{point}{after}", if whole.is_empty() { "0" } else { whole })
}

#[cfg(test)]
mod tests {
    use super::{Fit, push, push_short};
    use proptest::prelude::{prop_assert_eq, proptest};

    #[test]
    fn push_checks_precision_and_scale() {
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
            assert_eq!(push(text, limits, &mut Vec::new()), expected, "{label}");
        }
    }

    proptest! {
        #[test]
        fn numeric_keeps_each_digit(
            text in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?|-?(0|[1-9][0-9]{0,8})(\\.[0-9]{1,9})?|-?[0-9]000000000?(\\.0{1,9})?"
        ) {
            let mut value = Vec::new();
            prop_assert_eq!(push(&text, None, &mut value), Fit::Exact);
            let whole = text.trim_start_matches('-').trim_start_matches('0');
            let shown = if whole.is_empty() || whole.starts_with('.') { format!("0{whole}") } else { whole.to_owned() };
            let is_zero = !text.contains(|digit| ('1'..='9').contains(&digit));
            let sign = if text.starts_with('-') && !is_zero { "-" } else { "" };
            prop_assert_eq!(super::text(&value), format!("{sign}{shown}"));
            // Both ways to encode it have the same result.
            let (mut short, mut long) = (Vec::new(), Vec::new());
            if push_short(text.as_bytes(), None, &mut short) {
                push(&format!("{text}e0"), None, &mut long);
                prop_assert_eq!(short, long);
            }
        }
    }
}
