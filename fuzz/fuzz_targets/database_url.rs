//! The URL of a database, or the same as `key=value` text. Neither errors nor messages show the password.

#![no_main]

use libfuzzer_sys::fuzz_target;
use syncctl::db::Target;
use syncctl::secret::Secret;

const PASSWORD: &str = "hunter2-Q7x";

fuzz_target!(|text: &str| {
    if text.contains("hunter") {
        return;
    }
    let urls = [
        text.to_owned(),
        format!("postgresql://user:{PASSWORD}@{text}"),
        format!("postgres://user@host/database?password={PASSWORD}&{text}"),
        format!("host=h user=u password='{PASSWORD}' {text}"),
        format!("host=h user=u password={PASSWORD} {text}"),
    ];
    for url in urls {
        let printed = match Target::parse(&Secret::from(url.clone()), "SYNCCTL_DATABASE_URL") {
            Ok(target) => format!("{target:?} {}", target.address()),
            Err(error) => format!("{error:?} {error}"),
        };
        assert!(!printed.contains(PASSWORD), "{url}: {printed}");
    }
});
