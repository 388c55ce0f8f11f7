//! Secrets of many kinds in every encoding, none of which may be readable, and ordinary text, all of which must be.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::Masker;

const SECRETS: &[&str] = &[
    "hunter2-s3cret",
    "p@ss w\u{f6}rd/\"1'",
    "a&b<c>d\"e'f;g",
    "100% c\\ool $HOME `x` ^y",
    "\u{43a}\u{43b}\u{44e}\u{447}-\u{43e}\u{442}-\u{432}\u{441}\u{435}\u{433}\u{43e}",
    "\u{1f600}emoji\u{1f511}key",
    "sk_live_51H8xYzAbCdEfGhIjKlMnOp",
    "semi;colon=eq+plus/slash==",
    "user:pass@host?x#y",
    "{curly}[brackets]|pipe!",
    "00042-0007",
    "tab\tand \u{e9}\u{e8}\u{fc}",
];

type Encoder = (&'static str, fn(&str) -> String);

fn percent(text: &str, is_plain: fn(u8) -> bool, hex: fn(u8) -> String) -> String {
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{}", hex(byte)) })
        .collect()
}

fn upper(byte: u8) -> String {
    format!("{byte:02X}")
}

fn lower(byte: u8) -> String {
    format!("{byte:02x}")
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn json_string(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn unicode(text: &str, is_escaped: fn(char) -> bool, is_upper: bool) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if is_escaped(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                if is_upper { write!(escaped, "\\u{unit:04X}") } else { write!(escaped, "\\u{unit:04x}") }
                    .expect("memory");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

fn entities(text: &str, is_escaped: fn(char) -> bool, entity: fn(char) -> String) -> String {
    text.chars().map(|c| if is_escaped(c) { entity(c) } else { c.to_string() }).collect()
}

fn backslashed(text: &str, escaped: &str) -> String {
    text.chars().map(|c| if escaped.contains(c) { format!("\\{c}") } else { c.to_string() }).collect()
}

fn quoted_printable(text: &str) -> String {
    let is_plain = |byte| (b' '..=b'~').contains(&byte) && byte != b'=';
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("={byte:02X}") })
        .collect()
}

const ENCODERS: &[Encoder] = &[
    ("as it is", str::to_owned),
    ("URI data", |text| percent(text, is_unreserved, upper)),
    ("URI data, lower case", |text| percent(text, is_unreserved, lower)),
    ("URI data, all of it", |text| percent(text, |_| false, upper)),
    ("URI, reserved kept", |text| {
        percent(text, |byte| is_unreserved(byte) || b";/?:@&=+$,#!'()*".contains(&byte), upper)
    }),
    ("URI data twice", |text| percent(&percent(text, is_unreserved, upper), is_unreserved, upper)),
    ("form", |text| percent(text, |byte| is_unreserved(byte) || byte == b' ', upper).replace(' ', "+")),
    ("userinfo", |text| format!("https://reader:{}@example.com/", percent(text, is_unreserved, upper))),
    ("JSON", json_string),
    ("JSON in JSON", |text| json_string(&json_string(text))),
    ("JSON in JSON in JSON", |text| json_string(&json_string(&json_string(text)))),
    ("JSON of ASCII", |text| unicode(&json_string(text), |c| !c.is_ascii(), false)),
    ("JSON of ASCII, upper case", |text| unicode(&json_string(text), |c| !c.is_ascii(), true)),
    ("JSON of ASCII in JSON", |text| json_string(&unicode(&json_string(text), |c| !c.is_ascii(), false))),
    ("JSON with escapes of HTML", |text| unicode(&json_string(text), |c| "<>&'/".contains(c) || !c.is_ascii(), false)),
    ("all escaped", |text| unicode(text, |_| true, false)),
    ("JSON in a URL", |text| percent(&json_string(text), is_unreserved, upper)),
    ("a URL in JSON in HTML", |text| json_string(&percent(text, is_unreserved, lower)).replace('%', "&#37;")),
    ("JSON with escaped slashes", |text| json_string(text).replace('/', "\\/")),
    ("JavaScript's escape", |text| {
        unicode(text, |c| !c.is_ascii(), true).replace("\\u", "%u").replace(' ', "%20").replace('"', "%22")
    }),
    ("HTML, named", |text| {
        let named = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        let named = named.replace('\'', "&apos;").replace('\u{f6}', "&ouml;").replace('\u{e9}', "&eacute;");
        named.replace('\u{e8}', "&egrave;").replace('\u{fc}', "&uuml;").replace('!', "&excl;")
    }),
    ("HTML of Python", |text| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        text.replace('"', "&quot;").replace('\'', "&#x27;")
    }),
    ("HTML, decimal", |text| {
        entities(text, |c| !c.is_alphanumeric() || !c.is_ascii(), |c| format!("&#{};", u32::from(c)))
    }),
    ("HTML, hexadecimal", |text| entities(text, |_| true, |c| format!("&#x{:x};", u32::from(c)))),
    ("HTML, upper case", |text| {
        entities(text, |c| !c.is_ascii_alphanumeric(), |c| format!("&#X{:04X};", u32::from(c)))
    }),
    ("HTML twice", |text| entities(text, |c| "&<>\"'".contains(c), |c| format!("&amp;#{};", u32::from(c)))),
    ("base64", |text| STANDARD.encode(text)),
    ("base64, unpadded", |text| STANDARD_NO_PAD.encode(text)),
    ("base64 behind one byte", |text| STANDARD.encode(format!(":{text}"))),
    ("base64 behind two bytes", |text| STANDARD.encode(format!("a:{text}"))),
    ("base64 between", |text| STANDARD.encode(format!("{{\"a\":\"{text}\"}}, and more"))),
    ("base64 of a URL", |text| URL_SAFE.encode(format!("ab{text}c"))),
    ("base64 of a URL, unpadded", |text| URL_SAFE_NO_PAD.encode(format!("b{text}cd"))),
    ("base64 of JSON", |text| STANDARD.encode(json!({"password": text}).to_string())),
    ("base64 in base64", |text| STANDARD.encode(STANDARD.encode(text))),
    ("base64 of UTF-16", |text| STANDARD.encode(text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>())),
    ("base64 in a URL", |text| percent(&STANDARD.encode(text), is_unreserved, upper)),
    ("base64 in JSON", |text| STANDARD.encode(text).replace('/', "\\/")),
    ("Basic", |text| format!("Authorization: Basic {}", STANDARD.encode(format!("reader:{text}")))),
    ("hexadecimal", |text| hex::encode(text)),
    ("hexadecimal, upper case", |text| hex::encode_upper(text)),
    ("hexadecimal, separated", |text| text.bytes().map(lower).collect::<Vec<_>>().join(":")),
    ("shell, single quotes", |text| format!("'{}'", text.replace('\'', r"'\''"))),
    ("shell of Python", |text| format!("'{}'", text.replace('\'', r#"'"'"'"#))),
    ("shell, double quotes", |text| format!("\"{}\"", backslashed(text, "\\\"$`!"))),
    ("shell, no quotes", |text| backslashed(text, " \"'\\&|;<>()$`*?[]#~=%!{}^\t")),
    ("shell, octal", |text| text.bytes().map(|byte| format!("\\{byte:03o}")).collect::<Vec<_>>().concat()),
    ("command line", |text| format!("\"{}\"", text.replace('"', "\\\""))),
    ("cmd", |text| text.chars().map(|c| if "&<>|^".contains(c) { format!("^{c}") } else { c.to_string() }).collect()),
    ("batch file", |text| text.replace('%', "%%")),
    ("PowerShell", |text| {
        text.chars().map(|c| if "`$\"'".contains(c) { format!("`{c}") } else { c.to_string() }).collect()
    }),
    ("expression", |text| format!("'{}'", text.replace('\'', "''"))),
    ("CSV", |text| format!("\"{}\"", text.replace('"', "\"\""))),
    ("repr of Python", |text| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\t', "\\t"))),
    ("ascii of Python", |text| {
        let escape = |c: char| match u32::from(c) {
            0x5c | 0x27 => format!("\\{c}"),
            9 => "\\t".to_owned(),
            code @ 0..0x80 => char::from_u32(code).expect("ASCII").to_string(),
            code @ 0x80..0x100 => format!("\\x{code:02x}"),
            code @ 0x100..0x1_0000 => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        };
        text.chars().map(escape).collect()
    }),
    ("bytes of Python", |text| {
        let escape = |byte: u8| match byte {
            b'\\' | b'\'' => format!("\\{}", char::from(byte)),
            b'\t' => "\\t".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        format!("b'{}'", text.bytes().map(escape).collect::<String>())
    }),
    ("Debug of Rust", |text| format!("{text:?}")),
    ("JavaScript, braces", |text| {
        text.chars()
            .map(|c| if c.is_ascii() && c != '\\' { c.to_string() } else { format!("\\u{{{:x}}}", u32::from(c)) })
            .collect()
    }),
    ("YAML, single quotes", |text| format!("'{}'", text.replace('\'', "''"))),
    ("YAML", |text| serde_json::Value::from(text).to_string()),
    ("quoted printable", quoted_printable),
    ("quoted printable, wrapped", |text| {
        let middle = text.char_indices().nth(5).expect("a long text").0;
        format!("{}=\r\n{}", quoted_printable(&text[..middle]), quoted_printable(&text[middle..]))
    }),
];

fn masker_of(secrets: &[&str]) -> Masker {
    let masker = Masker::default();
    masker.add_config("config.json", &json!({"username": "reader", "credentials": {"api_keys": secrets}}).to_string());
    masker
}

#[test]
fn no_encoding_of_a_secret_is_readable() {
    let mut readable = Vec::new();
    for secret in SECRETS {
        let masker = masker_of(&[secret]);
        for (name, encode) in ENCODERS {
            let encoded = encode(secret);
            let shown = masker.mask(&format!("before |{encoded}| after")).into_owned();
            let rest = shown.replace("***", "");
            // What surrounds the secret within its encoding is no secret.
            let longest = longest_common(&rest, &encoded);
            let allowed =
                if encoded.contains("reader") || name.contains("base64") || *name == "Basic" { 24 } else { 5 };
            let is_masked = shown.contains("***") && longest <= allowed.min(encoded.len() / 2);
            if !is_masked || !shown.starts_with("before |") || !shown.ends_with("| after") {
                readable.push(format!("{name}: {secret:?}: {encoded} -> {shown}"));
            }
        }
    }
    assert!(readable.is_empty(), "{} of {}:\n{}", readable.len(), SECRETS.len() * ENCODERS.len(), readable.join("\n"));
}

/// The length of the longest text that both contain.
fn longest_common(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let (mut longest, mut row) = (0, vec![0; other.len() + 1]);
    for byte in one {
        for at in (0..other.len()).rev() {
            row[at + 1] = if other[at] == *byte { row[at] + 1 } else { 0 };
            longest = longest.max(row[at + 1]);
        }
    }
    longest
}

const MONGO: &str = "a-shard-00-00.cluster-c9a1b2c3d4e5.eu-west-1.mongodb.example.com:27017,b-shard.example.com:27017";

#[test]
fn ordinary_text_stays_readable() {
    let masker = Masker::new(None, ["orders_v2x9k3".to_owned()]);
    let config = json!({
        "host": "db-7.internal", "port": 5432, "database": "shop", "schemas": ["public", "sales_2024"], "username": "reader",
        "password": "hunter2-s3cret", "ssl": true, "use_tls": "true", "region": "us-east-1", "start_date": "2024-01-01",
        "replication_method": {"method": "CDC", "replication_slot": "airbyte_slot", "lsn_commit_behaviour": "While reading Data"},
        "tunnel_method": {"tunnel_method": "NO_TUNNEL"}, "credentials": {"auth_type": "Service", "api_key": SECRETS},
        "batch_size": 10_000, "timezone": "Europe/Berlin", "empty": "", "none": null, "flag": "false", "list": [1, 2, 3],
        "page_token": "", "pin": 7, "note": "a few words",
        "connection_string": format!("mongodb+srv://reader:s3cr3t-in-url@{MONGO}/shop?retryWrites=true&w=majority&authSource=admin"),
    });
    masker.add_config("config.json", &config.to_string());
    masker.add_document("state.json", &json!([{"stream": {"stream_descriptor": {"name": "orders_v2x9k3"}, "stream_state": {"updated_at": "2024-05-01T10:00:00Z", "cursor": "17"}}}]).to_string());
    for line in [
        "connecting to db-7.internal:5432/shop as reader, ssl true, region us-east-1",
        "public.orders_v2x9k3, sales_2024.customers: 10000 rows since 2024-01-01T00:00:00.000Z (Europe/Berlin)",
        "CDC with airbyte_slot; NO_TUNNEL; While reading Data; a few words; Service; 7 of 17, 100%",
        "SELECT id, name FROM \"public\".\"orders\" WHERE id > 5 AND name <> 'x'; -- 50% of 2 & 3",
        "GET https://api.example.com/v1/items?page=2&limit=100&sort=name&filter=a%20b HTTP/1.1 200 OK",
        "Traceback (most recent call last):\n  File \"/airbyte/main.py\", line 7, in run\n    raise ValueError(\"no such table\")",
        "io.airbyte.cdk.db.jdbc.JdbcDatabase$1.read(JdbcDatabase.java:130) ~[airbyte-cdk-core-0.48.jar:?]",
        r#"{"type":"STREAM","stream_descriptor":{"name":"customers","namespace":"public"},"lsn":"0/16B3748"}"#,
        "request 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed took 123 ms; sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "C:\\temp\\new\\table.csv: 5 \u{20ac}, na\u{ef}ve caf\u{e9}, \u{65e5}\u{672c}\u{8a9e}, 'quoted' \"text\" <b>bold</b> &amp; &lt;",
        "password, secret, token and api_key are required; true false null none 0 1 admin test user",
        &format!("connecting to {MONGO} with retryWrites=true, w=majority, authSource=admin"),
        "eyes, keys, hunter, secret-free, hunt3r2, sk_live, p@ss, words; emoji and key; 00042",
    ] {
        assert_eq!(masker.mask(line), line);
    }
}

#[test]
fn documents_that_only_connectors_can_read_are_masked() {
    let deep = |depth: usize| format!("{}{{\"password\": \"hunter2-s3cret\"}}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = format!("{}{{\"token\": \"hunter2-s3cret\"}}{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    for config in [
        r#"{"password": "hunter2-s3cret", "name": "\ud800"}"#,
        r#"{"limit": 1e999, "password": "hunter2-s3cret"}"#,
        r#"{"limit": -1E+9999, "n": NaN, "i": -Infinity, "password": "hunter2-s3cret"}"#,
        r#"{"password": "hunter2-s3cret", "password": "other"}"#,
        r#"{"a": {"password": "hunter2-s3cret"}, "a": 1}"#,
        &format!(r#"{{"n": {}, "password": "hunter2-s3cret"}}"#, "9".repeat(5000)),
        "\u{feff}{\"password\": \"hunter2-s3cret\"}",
        "{\"name\": \"a\u{1}\nb\", \"password\": \"hunter2-s3cret\"}",
        r#"{"service_account": "{\"n\": 1e999, \"private_key\": \"hunter2-s3cret\"}"}"#,
        r#"{"settings": "[{\"credentials\": \"{\\\"token\\\": \\\"hunter2-s3cret\\\"}\"}]"}"#,
        &json!({"credentials": STANDARD.encode(r#"{"private_key": "hunter2-s3cret"}"#)}).to_string(),
        &deep(127),
        &deep(128),
        &deep(1000),
        &deep(100_000),
        &objects,
    ] {
        let masker = Masker::default();
        masker.add_config("config.json", config);
        let shown: String = config.chars().take(80).collect();
        assert_eq!(masker.mask("login with hunter2-s3cret failed"), "login with *** failed", "{shown}");
    }
    let masker = Masker::default();
    masker.add_config("config.json", r#"{"password": "ab\ud800cd-\udc00ef"}"#);
    for text in [r"'ab\ud800cd-\udc00ef'", "'ab\u{fffd}cd-\u{fffd}ef'", r"'ab\uD800cd-\uDC00ef'"] {
        assert_eq!(masker.mask(text), "'***'", "{text}");
    }
}

#[test]
fn a_document_that_cannot_be_read_hides_all_text() {
    for document in ["{\"password\": \"hunter2\"", "password: hunter2", "{'password': 'hunter2'}", "{\"a\": \"\\q\"}"] {
        for add in [Masker::add_config, Masker::add_renewed_config, Masker::add_document] {
            let masker = Masker::default();
            masker.add_config("config.json", r#"{"password": "s3cret-of-the-first"}"#);
            add(&masker, "config.json", document);
            let sentence =
                "text of the connector is not shown: its secrets are unknown, because config.json cannot be read";
            assert_eq!(masker.hidden().as_deref(), Some(sentence));
            for text in ["hunter2", "anything", ""] {
                assert_eq!(masker.mask(text), sentence);
            }
            assert_eq!(masker.mask_own("the task ended: s3cret-of-the-first"), "the task ended: ***");
        }
    }
    let masker = Masker::default();
    for empty in ["", " \n"] {
        masker.add_document("state.json", empty);
    }
    assert_eq!(masker.mask("anything"), "anything");
}

/// Text without repetitions.
fn noise(length: usize) -> String {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"[(state >> 33) as usize % 62])
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn one_large_value_leaves_room_for_the_others_and_is_masked_itself() {
    let large = noise(300_000);
    let key: String = noise(3000).as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    let account = json!({"type": "service_account", "private_key": key, "padding": large}).to_string();
    let others: Vec<String> = (0..50).map(|number| format!("other-s3cret-{number}")).collect();
    let schema = json!({"properties": {"account": {"airbyte_secret": true}}});
    let masker = Masker::new(Some(schema), []);
    masker.add_config(
        "config.json",
        &json!({"account": account, "z_token": large, "password": "hunter2", "tokens": others}).to_string(),
    );
    assert_eq!(masker.mask("hunter2"), "***");
    for other in &others {
        assert_eq!(masker.mask(other), "***");
    }
    for line in key.lines() {
        assert_eq!(masker.mask(line), "***");
    }
    let part = &large[100_001..102_000];
    for (text, expected) in [
        (format!("all of it: {account}"), "all of it: ***".to_owned()),
        (format!("a part of it: {part}"), "a part of it: ***".to_owned()),
        (format!("in base64: {}", STANDARD.encode(&large)), "in base64: ***".to_owned()),
        (format!("a part in base64: {}", URL_SAFE.encode(part)), "a part in base64: ***".to_owned()),
        (format!("escaped: {}", json_string(&account)), "escaped: ***".to_owned()),
        ("service_account".to_owned(), "service_account".to_owned()),
    ] {
        assert_eq!(masker.mask(&text), expected);
    }
}

#[test]
fn text_is_masked_before_it_is_cut_and_where_it_was_cut() {
    let masker = masker_of(&["hunter2-s3cret-of-many-characters"]);
    let beginning = |text: &str, limit, was_cut| masker.mask_beginning(text, limit, was_cut);
    let text = format!("{}hunter2-s3cret-of-many-characters and more", "x".repeat(90));
    assert_eq!(beginning(&text, 100, false), (format!("{}*** and mo", "x".repeat(90)), true));
    assert_eq!(beginning("login hunter2-s3cr", 100, true), ("login ***".to_owned(), false));
    assert_eq!(beginning("login hunter2-s3cr", 100, false), ("login hunter2-s3cr".to_owned(), false));
    assert_eq!(beginning("login hun", 100, true).0, "login hun");
}

#[test]
fn a_renewed_configuration_is_not_shown_before_its_secrets_are_known() {
    let masker = Masker::default();
    let message = r#"{"type":"CONTROL","control":{"connectorConfig":{"config":{"token":"new-s3cret"}}}}"#;
    let shown = "a message with a renewed configuration is not shown";
    for text in [message.to_owned(), message[..70].to_owned(), json_string(message), message.replace('"', "'")] {
        assert_eq!(masker.mask(&text), shown, "{text}");
        assert_eq!(masker.mask_beginning(&text, 1000, true).0, shown);
    }
    let text = "the field connectorConfig is missing";
    assert_eq!(masker.mask(text), text);
}

#[test]
fn renewed_configurations_replace_earlier_ones_where_there_are_too_many() {
    let masker = Masker::default();
    masker.add_config("config.json", r#"{"password": "s3cret-of-the-first"}"#);
    let token = |number: usize| noise(300_000 + number)[number..].to_owned();
    for renewal in 0..3 {
        let tokens: Vec<_> = (0..3).map(|number| token(renewal * 3 + number)).collect();
        masker.add_renewed_config("the renewed configuration", &json!({ "tokens": tokens }).to_string());
    }
    assert_eq!(masker.hidden(), None);
    assert_eq!(masker.mask(&format!("s3cret-of-the-first, {}", token(8))), "***, ***");
}

#[test]
fn whitespace_around_a_secret_makes_no_difference() {
    let masker = masker_of(&["  hunter2-s3cret\n"]);
    for (text, expected) in [
        ("hunter2-s3cret", "***".to_owned()),
        (&STANDARD.encode("reader:hunter2-s3cret"), "***".to_owned()),
        (&hex::encode("hunter2-s3cret"), "***".to_owned()),
    ] {
        assert_eq!(masker.mask(text), expected);
    }
}

#[test]
fn many_values_that_look_like_secrets_do_not_hide_all_text() {
    let values: Vec<String> = (0..4000).map(|number| format!("v{number}x9K2mQ7vL4")).collect();
    let masker = Masker::default();
    masker.add_config("config.json", &json!({"reports": values, "password": "hunter2"}).to_string());
    assert_eq!(masker.mask("the password hunter2"), "the password ***");
}

#[test]
fn a_short_password_beside_its_user_is_masked_in_basic_authentication() {
    let masker = Masker::new(Some(json!({"properties": {"password": {"airbyte_secret": true}}})), []);
    masker.add_config("config.json", r#"{"username": "reader", "password": "ab1", "host": "db"}"#);
    let encoded = STANDARD.encode("reader:ab1");
    assert_eq!(masker.mask(&format!("Basic {encoded}")), "Basic ***");
}
