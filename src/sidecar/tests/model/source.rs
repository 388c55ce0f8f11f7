//! What the source writes in a run: the lines, and what they mean for each stream.

use serde_json::{Value, json};

use super::generator::Random;
use super::scenario::{Record, Run, Scenario, StreamRun};

/// The messages of one stream in one run.
#[derive(Debug, Default)]
pub struct Sent {
    /// All records, whether a message was cut off or not.
    pub records: Vec<Record>,
    /// How many of them were written.
    pub written: usize,
    /// The source has reported the stream as complete, or ended without an error if it sends no statuses.
    pub complete: bool,
}

/// A number in each state, whose digits must survive.
pub const TOKEN: &str = "12345678901234567890.09876543210987654321";

enum Message {
    Record(usize),
    /// The state after this number of records.
    State(usize),
    Status(&'static str),
}

/// What the source does in a run, given the records of each stream. `state` returns the state of a stream (its place in
/// the run) after this number of records. Returns the lines, what was sent of each stream, and the exit code.
pub fn script(
    scenario: &Scenario,
    run: &Run,
    records: Vec<Vec<Record>>,
    mut state: impl FnMut(&[usize]) -> Vec<Value>,
) -> (String, Vec<Sent>, u8) {
    let mut sent: Vec<Sent> = records.into_iter().map(|records| Sent { records, ..Sent::default() }).collect();
    let statuses = scenario.options.statuses;
    let mut queues: Vec<_> = run
        .streams
        .iter()
        .zip(&sent)
        .map(|(stream_run, sent)| messages(stream_run, sent.records.len(), statuses).into_iter().peekable())
        .collect();
    let (mut random, mut lines, mut count) = (Random(run.order), Vec::new(), 0);
    let mut positions = vec![0; queues.len()];
    let fails_after = run.fails_after.unwrap_or(usize::MAX);
    loop {
        let open: Vec<usize> = (0..queues.len()).filter(|at| queues[*at].peek().is_some()).collect();
        if open.is_empty() || count == fails_after {
            break;
        }
        let at = open[random.below(open.len())];
        // Several messages of a stream in a row.
        for _ in 0..=random.below(4) {
            if count == fails_after {
                break;
            }
            let Some(message) = queues[at].next() else { break };
            lines.extend((random.below(20) == 0).then(|| "half a line of a log".to_owned()));
            count += 1;
            let stream = &scenario.streams[run.streams[at].stream];
            match message {
                Message::Record(number) => {
                    sent[at].written = number + 1;
                    let data = sent[at].records[number].data(&stream.fields);
                    let namespace = stream.namespace.as_ref().map(|name| format!(r#""namespace":{},"#, json!(name)));
                    let line = format!(
                        r#"{{"type":"RECORD","record":{{"stream":{},{}"data":{data},"emitted_at":1}}}}"#,
                        json!(stream.name),
                        namespace.unwrap_or_default(),
                    );
                    // Some lines begin with other output, or have two messages.
                    match (random.below(20), lines.last_mut()) {
                        (0, _) => lines.push(format!("...{line}")),
                        (1, _) => lines.push(format!("\u{1b}[32m{line}\u{1b}[0m")),
                        (2, Some(last)) => last.push_str(&line),
                        _ => lines.push(line),
                    }
                }
                Message::State(position) => {
                    positions[at] = position;
                    let states = state(&positions);
                    let descriptor = |at: usize| descriptor(scenario, &run.streams[at]);
                    let state = |at: usize| json!({"stream_descriptor": descriptor(at), "stream_state": states[at]});
                    let payload = if scenario.options.global_state {
                        let all: Vec<Value> = (0..states.len()).map(state).collect();
                        json!({"type": "GLOBAL", "global": {"shared_state": {"n": count}, "stream_states": all}})
                    } else {
                        json!({"type": "STREAM", "stream": state(at)})
                    };
                    let line = json!({"type": "STATE", "state": payload}).to_string();
                    lines.push(line.replace(&format!("\"{TOKEN}\""), TOKEN));
                }
                Message::Status(status) => {
                    sent[at].complete |= status == "COMPLETE";
                    let status = json!({"stream_descriptor": descriptor(scenario, &run.streams[at]), "status": status});
                    let trace = json!({"type": "STREAM_STATUS", "stream_status": status});
                    lines.push(json!({"type": "TRACE", "trace": trace}).to_string());
                }
            }
        }
    }
    let has_failed = count == fails_after;
    if !statuses {
        for sent in &mut sent {
            sent.complete = !has_failed;
        }
    }
    // Without any message the read would fail.
    lines.push(json!({"type": "LOG", "log": {"level": "INFO", "message": "end"}}).to_string());
    (lines.join("\n") + "\n", sent, u8::from(has_failed))
}

fn descriptor(scenario: &Scenario, run: &StreamRun) -> Value {
    let stream = &scenario.streams[run.stream];
    let mut descriptor = json!({"name": stream.name});
    if let Some(namespace) = &stream.namespace {
        descriptor["namespace"] = json!(namespace);
    }
    descriptor
}

fn messages(run: &StreamRun, records: usize, statuses: bool) -> Vec<Message> {
    let mut messages: Vec<Message> = statuses.then_some(Message::Status("STARTED")).into_iter().collect();
    for number in 0..records {
        messages.push(Message::Record(number));
        if (number + 1) % run.records_per_state == 0 {
            messages.push(Message::State(number + 1));
        }
    }
    if statuses && run.incomplete {
        messages.push(Message::Status("INCOMPLETE"));
    } else {
        messages.push(Message::State(records));
        messages.extend(statuses.then_some(Message::Status("COMPLETE")));
    }
    messages
}
