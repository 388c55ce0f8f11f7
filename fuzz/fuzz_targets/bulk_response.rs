//! The responses of a Bulker and of a console. The first byte is the number of bytes that arrive at a time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use syncctl::http_client::response::{parse_response, skip_interim};
use syncctl::sidecar::sink::bulker::response::{outcome, refusal};

/// What a text of the server may have at most, with the text around it.
const MAX_TEXT_CHARS: usize = 1500;

fuzz_target!(|data: &[u8]| {
    let [step, bytes @ ..] = data else { return };
    let step = usize::from(*step) + 1;
    let mut bytes = bytes.to_vec();
    skip_interim(&mut bytes);
    let whole = parse_response(&bytes, false);
    // What is complete is not changed by what follows.
    for end in (0..bytes.len()).step_by(step) {
        match parse_response(&bytes[..end], false) {
            Ok(None) => {}
            Ok(complete) => {
                assert_eq!(Ok(complete), whole);
                break;
            }
            Err(_) => {
                assert!(whole.is_err());
                break;
            }
        }
    }
    let Ok(Some(response)) = parse_response(&bytes, true) else { return };
    let errors =
        [refusal(&response, "id").text, outcome(&response, 3, "id").map_or_else(|error| error.text, |_| String::new())];
    for error in errors {
        assert!(error.chars().count() <= MAX_TEXT_CHARS && !error.contains(char::is_control), "{error:?}");
    }
});
