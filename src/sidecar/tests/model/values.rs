//! Compares the text of a column with a JSON value, exactly.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use serde_json::Value;
use serde_json::value::RawValue;

/// Whether a column of this type, with this text, holds exactly this JSON value.
pub fn holds(sql_type: &str, text: &str, raw: &str) -> bool {
    let string = string(raw);
    let string = string.as_deref();
    match sql_type {
        "text" => match string {
            Some(string) => string == text || (instant(string).is_some() && instant(string) == instant(text)),
            None => is_same_json(text, raw),
        },
        "boolean" => raw == if text == "t" { "true" } else { "false" },
        "bigint" | "numeric" | "double precision" => {
            let number = decimal(string.unwrap_or(raw));
            number.is_some() && number == decimal(text)
        }
        "timestamp with time zone" => {
            string.is_some_and(|string| instant(string).is_some_and(|at| Some(at) == instant(text)))
        }
        "timestamp without time zone" => string.and_then(|string| string.parse::<DateTime>().ok()) == text.parse().ok(),
        "time without time zone" | "time with time zone" => string == Some(text),
        "date" => string.and_then(|string| string.parse::<Date>().ok()) == text.parse().ok(),
        "jsonb" => {
            is_same_json(text, raw)
                || string.is_some_and(|string| string.starts_with(['{', '[']) && is_same_json(text, string))
        }
        _ => false,
    }
}

/// Whether a column holds the number rounded to the digits of a floating-point number.
pub fn holds_rounded(text: &str, raw: &str) -> bool {
    decimal(raw).is_some() && text.parse::<f64>().is_ok_and(|rounded| raw.parse() == Ok(rounded))
}

/// Whether a column of this type can hold the value exactly, so that the value must be there.
pub fn fits(sql_type: &str, raw: &str) -> bool {
    let is_string = raw.starts_with('"');
    let is_number = raw.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    match sql_type {
        "text" => is_string,
        "boolean" => matches!(raw, "true" | "false"),
        "bigint" => raw.parse::<i64>().is_ok(),
        "numeric" => is_number,
        "double precision" => {
            is_number && raw.parse::<f64>().is_ok_and(|number| decimal(&number.to_string()) == decimal(raw))
        }
        "timestamp with time zone" => string(raw).is_some_and(|text| text.parse::<Timestamp>().is_ok()),
        "date" => string(raw).is_some_and(|text| text.len() == 10 && text.parse::<Date>().is_ok()),
        "jsonb" => raw.starts_with(['{', '[']),
        _ => false,
    }
}

/// Whether two texts are the same JSON value. Numbers are compared digit by digit; U+0000 is ignored.
pub fn is_same_json(left: &str, right: &str) -> bool {
    fn parse<'a, T: serde::Deserialize<'a>>(left: &'a str, right: &'a str) -> Option<(T, T)> {
        Some((serde_json::from_str(left).ok()?, serde_json::from_str(right).ok()?))
    }
    if let Some((left, right)) = parse::<BTreeMap<String, &RawValue>>(left, right) {
        let is_same = |((left_key, left), (right_key, right)): ((&String, &&RawValue), (&String, &&RawValue))| {
            left_key == right_key && is_same_json(left.get(), right.get())
        };
        return left.len() == right.len() && left.iter().zip(&right).all(is_same);
    }
    if let Some((left, right)) = parse::<Vec<&RawValue>>(left, right) {
        return left.len() == right.len()
            && left.iter().zip(&right).all(|(left, right)| is_same_json(left.get(), right.get()));
    }
    match (string(left), string(right), decimal(left), decimal(right)) {
        (None, None, None, None) => left == right,
        (left, right, left_number, right_number) => left == right && left_number == right_number,
    }
}

/// The content of a JSON string, without U+0000.
fn string(raw: &str) -> Option<String> {
    let text: String = serde_json::from_str(raw).ok()?;
    Some(text.replace('\0', ""))
}

/// Sign, digits and exponent of a number; equal numbers have equal ones.
pub fn decimal(text: &str) -> Option<(bool, String, i64)> {
    if !serde_json::from_str::<&RawValue>(text)
        .is_ok_and(|_| text.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
    {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches('-'));
    let significant = digits.trim_end_matches('0');
    let mut exponent = exponent.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
    exponent += i64::try_from(digits.len() - significant.len()).ok()?;
    let significant = significant.trim_start_matches('0');
    if significant.is_empty() {
        Some((false, String::new(), 0))
    } else {
        Some((is_negative, significant.to_owned(), exponent))
    }
}

/// A point in time; dates are midnight UTC.
fn instant(text: &str) -> Option<Timestamp> {
    let midnight = |date: Date| date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    text.parse().ok().or_else(|| (text.len() == 10).then(|| text.parse().ok()).flatten().and_then(midnight))
}

/// The members of a JSON object, with their text.
pub fn members(raw: &str) -> Option<BTreeMap<String, String>> {
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(raw).ok()?;
    Some(members.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect())
}

/// The value of a key field, so that equal keys are equal.
pub fn key_value(raw: Option<&str>) -> Value {
    let raw = raw.unwrap_or("null");
    decimal(raw)
        .map_or_else(|| serde_json::from_str(raw).unwrap_or_default(), |number| Value::from(format!("{number:?}")))
}
