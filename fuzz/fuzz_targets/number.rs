//! Numbers in the binary form of `numeric`, against the same arithmetic on their texts. The first two bytes are the limits
//! of digits before and after the decimal point.

#![no_main]

use libfuzzer_sys::fuzz_target;
use syncctl::sidecar::sink::postgres::number::{self, Fit};
use syncctl::sidecar::sink::postgres::numeric;

/// Larger exponents would take the memory of their zeros.
const MAX_EXPONENT: u64 = 300;

fuzz_target!(|data: &[u8]| {
    let [before, after, text @ ..] = data else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    if !number::is_number(text) {
        return;
    }
    let (fit, bytes) = push(text, None);
    if !text.contains(['e', 'E']) {
        assert_eq!(push(&format!("{text}e0"), None), (fit, bytes.clone()), "with an exponent");
    }
    if let Some((double, _)) = number::double(text) {
        assert_eq!(Ok(double), text.parse());
    }
    number::real(text);
    let Some(plain) = Plain::of(text) else { return };
    assert_eq!((fit, numeric::text(&bytes)), (Fit::Exact, plain.to_string()));
    assert_eq!(number::integer(text), plain.integer());
    let limits = (i64::from(before % 24), i64::from(after % 24) - 3);
    assert_eq!(push(text, Some(limits)).0, plain.fit(limits), "{limits:?}");
});

fn push(text: &str, limits: Option<(i64, i64)>) -> (Fit, Vec<u8>) {
    let mut bytes = Vec::new();
    (numeric::push(text, limits, &mut bytes), bytes)
}

/// A number without an exponent.
struct Plain {
    is_negative: bool,
    /// Without zeros at the beginning.
    before: String,
    after: String,
}

impl Plain {
    fn of(text: &str) -> Option<Self> {
        let (is_negative, number) = text.strip_prefix('-').map_or((false, text), |number| (true, number));
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let exponent = exponent.parse::<i64>().ok().filter(|exponent| exponent.unsigned_abs() <= MAX_EXPONENT)?;
        let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (mut before, mut after) = (before.to_owned(), after.to_owned());
        for _ in 0..exponent {
            before.push(if after.is_empty() { '0' } else { after.remove(0) });
        }
        for _ in exponent..0 {
            after.insert(0, before.pop().unwrap_or('0'));
        }
        Some(Self { is_negative, before: before.trim_start_matches('0').to_owned(), after })
    }

    fn is_zero(&self) -> bool {
        self.before.is_empty() && self.after.bytes().all(|digit| digit == b'0')
    }

    fn integer(&self) -> Option<i64> {
        let is_whole = self.after.bytes().all(|digit| digit == b'0');
        let sign = if self.is_negative { "-" } else { "" };
        is_whole.then(|| format!("{sign}0{}", self.before).parse().ok())?
    }

    /// Its fit into this number of digits before and after the decimal point, where the server rounds half away from zero.
    fn fit(&self, (limit_before, limit_after): (i64, i64)) -> Fit {
        let digits = format!("{}{}", self.before, self.after);
        let places = i64::try_from(self.before.len()).expect("a length") + limit_after;
        let places = usize::try_from(places).ok().map(|places| places.min(digits.len()));
        let (head, tail) = digits.split_at(places.unwrap_or(0));
        let rounded = places.is_some() && tail.bytes().next() >= Some(b'5');
        let head = head.trim_start_matches('0');
        // Digits before the point of the rounded number.
        let carries = rounded && head.bytes().all(|digit| digit == b'9');
        let whole = if self.before.is_empty() && !carries {
            0
        } else if self.before.is_empty() {
            // 0.99 becomes 1; 0.099 becomes 0.1.
            i64::from(digits.len() - tail.len() == head.len())
        } else {
            self.before.len() as i64 + i64::from(carries)
        };
        // A number that rounds to zero has no digits.
        if self.is_zero() {
            return Fit::Exact;
        }
        match (whole <= limit_before, tail.bytes().all(|digit| digit == b'0')) {
            (true, true) => Fit::Exact,
            (true, false) => Fit::Rounded,
            (false, _) => Fit::Misfit,
        }
    }
}

impl std::fmt::Display for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.is_negative && !self.is_zero() { "-" } else { "" };
        let before = if self.before.is_empty() { "0" } else { &self.before };
        let point = if self.after.is_empty() { "" } else { "." };
        write!(f, "{sign}{before}{point}{}", self.after)
    }
}
