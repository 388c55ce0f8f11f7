//! Lines on stderr that report a crash. They count only where no exit code is known.

/// How the reports of language runtimes begin.
const BEGINNINGS: [&str; 6] = [
    "Traceback (most recent call last)",
    "Exception in thread ",
    "panic: ",
    "fatal error: ",
    "thread '",
    "Unhandled exception",
];

/// What a shell reports of a child that a signal has ended.
const SIGNALS: [&str; 8] = [
    "Killed",
    "Segmentation fault",
    "Aborted",
    "Bus error",
    "Illegal instruction",
    "Floating point exception",
    "Terminated",
    "Quit",
];

/// What a shell reports of a command that it cannot run.
const NOT_RUN: [&str; 4] = [": not found", ": command not found", ": Permission denied", ": No such file or directory"];

/// Whether a line reports that a program has crashed, or did not start.
pub fn is_report(line: &str) -> bool {
    let line = line.trim();
    let is_shell = line.starts_with("sh: ") || line.starts_with("/bin/sh: ") || line.starts_with("bash: ");
    BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
        || SIGNALS.iter().any(|signal| is_signal(line, signal))
        || is_shell && NOT_RUN.iter().any(|end| line.ends_with(end))
}

/// dash and busybox report `Killed`, bash `sh: line 1: 12 Killed    COMMAND`; a core dump adds ` (core dumped)`.
fn is_signal(line: &str, signal: &str) -> bool {
    if line.strip_suffix(" (core dumped)").unwrap_or(line) == signal {
        return true;
    }
    let Some((_, rest)) = line.split_once(": line ") else { return false };
    let Some((_, rest)) = rest.split_once(": ") else { return false };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    rest.strip_prefix(signal).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::is_report;

    #[test]
    fn reports_of_runtimes_and_shells_are_recognized() {
        for line in [
            "Traceback (most recent call last):",
            "Exception in thread \"main\" java.lang.OutOfMemoryError: Java heap space",
            "panic: runtime error: index out of range [3] with length 3",
            "fatal error: all goroutines are asleep - deadlock!",
            "thread 'main' panicked at src/main.rs:2:5:",
            "Killed",
            "Segmentation fault (core dumped)",
            "sh: line 1: 27837 Killed                  python main.py read",
            "bash: line 1:    14 Aborted                 (core dumped) ./connector",
            "sh: 1: spec: not found",
            "/bin/sh: /airbyte/integration_code/main.py: Permission denied",
        ] {
            assert!(is_report(line), "{line}");
        }
        for line in [
            "",
            "reading from the beginning",
            "Killed 3 idle connections",
            "error: retrying in 5 s",
            "table orders: not found",
            "pipeline 1: 5 Killed",
            "the thread 'main' is busy",
        ] {
            assert!(!is_report(line), "{line}");
        }
    }
}
