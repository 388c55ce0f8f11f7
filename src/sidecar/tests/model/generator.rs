//! Generates scenarios from seeds.
//!
//! Text and numbers name the field that they belong to, so that a value in the column of another field is found.

use serde_json::{Value, json};

use super::scenario::{Options, Record, Run, Scenario, Stream, StreamRun, UNCOMPARABLE};

/// A small generator of pseudo-random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or_default()
    }

    /// True in one of `of` cases.
    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// Names of streams and fields: equal after cleaning, in lower case, or after the cut at 63 bytes.
const NAMES: [&str; 18] = [
    "v",
    "V",
    "v!",
    "v?",
    "a_b",
    "a.b",
    "a/b",
    "A_b",
    "ID",
    "id",
    "Ünï cödé",
    "ünï cödé",
    "用户",
    "💥",
    "🦀",
    "a name of seventy characters, whose end is cut off by PostgreSQL: one 1",
    "a name of seventy characters, whose end is cut off by PostgreSQL: one 2",
    "_unmapped_data",
];
const NAMESPACES: [Option<&str>; 4] = [None, Some("crm"), Some("CRM"), Some("crm!")];

/// What a field holds in most records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Fraction,
    Boolean,
    Instant,
    Object,
    List,
}

const KINDS: [Kind; 7] =
    [Kind::Text, Kind::Integer, Kind::Fraction, Kind::Boolean, Kind::Instant, Kind::Object, Kind::List];

impl Kind {
    fn schema(self, random: &mut Random) -> Value {
        let kind = match self {
            Kind::Text => return json!({"type": ["null", "string"]}),
            Kind::Instant => return json!({"type": ["null", "string"], "format": "date-time"}),
            Kind::Integer => "integer",
            Kind::Fraction => "number",
            Kind::Boolean => "boolean",
            Kind::Object => "object",
            Kind::List => "array",
        };
        if random.one_in(2) { json!({"type": kind}) } else { json!({"type": ["null", kind]}) }
    }

    /// A value that no other record has. `tag` identifies record and field.
    fn value(self, tag: usize, random: &mut Random) -> String {
        let text = match self {
            Kind::Text => match random.below(6) {
                0 => format!("t{tag} \u{0}\n\"quoted\" \\ {}", "é".repeat(3)),
                1 => format!("t{tag} {}", "long ".repeat(600)),
                _ => format!("t{tag}"),
            },
            Kind::Instant => {
                let (hour, minute) = (tag / 60 % 24, tag % 60);
                let day = 1 + tag / 1440 % 28;
                let fraction = random.pick(&["", ".5", ".000001"]);
                let offset = random.pick(&["Z", "+00:00", "+05:30"]);
                format!("2024-{:02}-{day:02}T{hour:02}:{minute:02}:00{fraction}{offset}", 1 + tag / 40_320 % 12)
            }
            Kind::Integer => {
                return match random.below(6) {
                    0 => format!("{}", 9_007_199_254_740_993 + tag),
                    1 => format!("-{tag}"),
                    2 => format!("92233720368547758{tag:06}"),
                    _ => tag.to_string(),
                };
            }
            Kind::Fraction => {
                let digits = random.pick(&[".5", ".1", ".10", ".12345678901234567890123", "e3", "5E-7", ""]);
                return format!("{tag}{digits}");
            }
            Kind::Boolean => return (if random.one_in(2) { "true" } else { "false" }).to_owned(),
            Kind::Object => return format!(r#"{{"t":"t{tag}","n":{tag}.50,"deep":{{"list":[null,{tag}]}}}}"#),
            Kind::List => return format!(r#"["t{tag}",{tag},{{}}]"#),
        };
        Value::from(text).to_string()
    }
}

/// A stream while its runs are generated.
struct Source {
    kinds: Vec<Kind>,
    generation: Option<i64>,
    minimum: i64,
    mode: (bool, &'static str),
    /// The schema declares the fields of the key.
    has_declared_key: bool,
    /// The schema declares the cursor, so its column has the type of cursors.
    has_declared_cursor: bool,
    /// The number of records so far.
    records: usize,
    index: usize,
}

/// The scenario of a seed.
pub fn scenario(seed: u64) -> Scenario {
    let random = &mut Random(seed);
    let options = options(random);
    let mut streams: Vec<Stream> = Vec::new();
    let mut sources = Vec::new();
    let family = random.below(3);
    for index in 0..=random.below(4) {
        // Names of one family collide more often.
        let name = match family {
            0 => *random.pick(&NAMES),
            1 => *random.pick(&NAMES[..8]),
            _ => *random.pick(&NAMES[8..]),
        };
        let namespace = random.pick(&NAMESPACES).map(str::to_owned);
        let (stream, source) = stream(index, namespace, name, random);
        if streams.iter().all(|other| other.stream_name().key() != stream.stream_name().key()) {
            let index = streams.len();
            streams.push(stream);
            sources.push(Source { index, ..source });
        }
    }
    // A state of a namesake in another namespace counts as well, when in doubt.
    let is_unique = |stream: &Stream| streams.iter().filter(|other| other.name == stream.name).count() == 1;
    for (source, _) in sources.iter_mut().zip(&streams).filter(|(_, stream)| !is_unique(stream)) {
        source.generation = None;
    }
    let runs = (0..=random.below(5)).map(|_| run(&streams, &mut sources, random)).collect();
    Scenario { streams, options, runs }
}

fn options(random: &mut Random) -> Options {
    let namespaces = [None, Some("$schema_${SOURCE_NAMESPACE}"), Some("${LEGACY}")];
    Options {
        namespace: random.pick(&namespaces).map(str::to_owned),
        prefix: (*random.pick(&["", "", "p_", "P!"])).to_owned(),
        to_same_case: random.one_in(3),
        add_meta: random.one_in(4),
        console_overwrite: random.one_in(2),
        deduplicate: !random.one_in(8),
        statuses: !random.one_in(4),
        global_state: random.one_in(5),
    }
}

fn stream(index: usize, namespace: Option<String>, name: &str, random: &mut Random) -> (Stream, Source) {
    let mut fields: Vec<String> = Vec::new();
    for _ in 0..=random.below(6) {
        let name = *random.pick(&NAMES);
        if !fields.iter().any(|other| other == name) {
            fields.push(name.to_owned());
        }
    }
    let mut kinds: Vec<Kind> = fields.iter().map(|_| *random.pick(&KINDS)).collect();
    let key: Vec<usize> = (0..fields.len().min(random.below(3))).collect();
    for field in &key {
        kinds[*field] = *random.pick(&[Kind::Integer, Kind::Text]);
    }
    let cursor = (fields.len() > key.len() && random.one_in(2)).then_some(fields.len() - 1);
    if let Some(cursor) = cursor {
        kinds[cursor] = *random.pick(&[Kind::Integer, Kind::Instant]);
    }
    let source = Source {
        mode: mode(&key, random),
        generation: random.one_in(4).then_some(1),
        minimum: 0,
        records: 0,
        has_declared_key: !random.one_in(4),
        has_declared_cursor: random.one_in(2),
        kinds,
        index,
    };
    (Stream { namespace, name: name.to_owned(), fields, key, cursor }, source)
}

/// Whether the stream is read incrementally, and its write mode.
fn mode(key: &[usize], random: &mut Random) -> (bool, &'static str) {
    const MODES: [&str; 8] =
        ["append", "append", "append_dedup", "append_dedup", "overwrite", "overwrite_dedup", "update", "soft_delete"];
    const MODES_WITHOUT_KEY: [&str; 2] = ["append", "overwrite"];
    let modes: &[&str] = if key.is_empty() { &MODES_WITHOUT_KEY } else { &MODES };
    (!random.one_in(3), *random.pick(modes))
}

fn run(streams: &[Stream], sources: &mut [Source], random: &mut Random) -> Run {
    let mut selected: Vec<StreamRun> = Vec::new();
    for source in sources.iter_mut() {
        if !random.one_in(4) {
            selected.push(stream_run(&streams[source.index], source, random));
        }
    }
    if selected.is_empty() {
        return run(streams, std::slice::from_mut(&mut sources[0]), random);
    }
    random.shuffle(&mut selected);
    let fails_after = random.one_in(3).then(|| random.below(40));
    Run { streams: selected, fails_after, full_sync: random.one_in(12), order: random.next() }
}

fn stream_run(stream: &Stream, source: &mut Source, random: &mut Random) -> StreamRun {
    if random.one_in(8) && source.generation.is_none() {
        let earlier = source.mode.1;
        source.mode = mode(&stream.key, random);
        // Which of several rows with one key a merge compares cursors with is not defined.
        if stream.cursor.is_some() && ["append", "overwrite"].contains(&earlier) {
            source.mode.1 = earlier;
        }
    }
    if random.one_in(5) {
        // The type of a field changes, but not that of key and cursor.
        let field = random.below(stream.fields.len());
        if !stream.key.contains(&field) && stream.cursor != Some(field) {
            source.kinds[field] = *random.pick(&KINDS);
        }
    }
    let (incremental, mode) = source.mode;
    let mut clears_state = false;
    if let Some(generation) = &mut source.generation {
        match random.below(4) {
            // A refresh that deletes earlier rows, or keeps them.
            0 => (*generation, source.minimum, clears_state) = (*generation + 1, *generation + 1, true),
            1 => (*generation, source.minimum, clears_state) = (*generation + 1, 0, true),
            _ => {}
        }
    }
    let mut declared = Vec::new();
    for (field, kind) in source.kinds.iter().enumerate() {
        let is_declared = if stream.key.contains(&field) {
            source.has_declared_key
        } else if stream.cursor == Some(field) {
            source.has_declared_cursor
        } else {
            !random.one_in(4)
        };
        declared.push(is_declared.then(|| kind.schema(random)));
    }
    let count = *random.pick(&[0, 1, 2, 5, 12]);
    let records = (0..count).map(|_| record(stream, source, random)).collect();
    StreamRun {
        stream: source.index,
        incremental,
        mode,
        generation: source.generation.map(|generation| (generation, source.minimum)),
        clears_state,
        declared,
        records,
        records_per_state: 1 + random.below(5),
        incomplete: random.one_in(8),
    }
}

fn record(stream: &Stream, source: &mut Source, random: &mut Random) -> Record {
    source.records += 1;
    let number = source.records;
    let values = source.kinds.iter().enumerate().map(|(field, kind)| {
        let tag = (source.index + 1) * 1_000_000 + number * 10 + field;
        if stream.key.contains(&field) {
            return key_value(*kind, field, source.has_declared_key, random);
        }
        if stream.cursor == Some(field) {
            return cursor_value(*kind, field, source.has_declared_cursor, random);
        }
        match random.below(12) {
            0 => None,
            1 => Some("null".to_owned()),
            // A value of another type than declared.
            2 => Some(random.pick(&KINDS).value(tag, random)),
            _ => Some(kind.value(tag, random)),
        }
    });
    Record { values: values.collect(), uid: format!("s{}r{number}", source.index) }
}

/// One of few values, so that keys repeat.
fn key_value(kind: Kind, field: usize, is_declared: bool, random: &mut Random) -> Option<String> {
    let number = random.below(4);
    let value = match kind {
        // A key that neither the schema nor a row has fails the stream.
        _ if is_declared && random.one_in(8) => return random.one_in(2).then(|| "null".to_owned()),
        Kind::Integer => match number {
            0 => (9_007_199_254_740_992 + 10 * field).to_string(),
            1 => (9_007_199_254_740_993 + 10 * field).to_string(),
            _ => (100 * field + number).to_string(),
        },
        // Beyond what an index takes, even compressed.
        _ if random.one_in(8) => {
            let digits: Vec<String> = (0..250).map(|at| Random(at).next().to_string()).collect();
            json!(format!("key{field}{number}{}", digits.concat())).to_string()
        }
        _ => json!(format!("{}{field}", ["key", "Key", "key ", "k\u{e9}y"][number])).to_string(),
    };
    Some(value)
}

fn cursor_value(kind: Kind, field: usize, is_declared: bool, random: &mut Random) -> Option<String> {
    let number = random.below(5);
    match random.below(10) {
        0 => None,
        1 => Some("null".to_owned()),
        2 if is_declared => Some(UNCOMPARABLE.to_owned()),
        _ if kind == Kind::Integer => Some((1000 * field + number).to_string()),
        _ => Some(format!("\"2023-01-0{}T00:00:0{number}Z\"", 1 + field)),
    }
}
