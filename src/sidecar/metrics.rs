//! What the connector's container uses: one line that the source wrapper keeps current beside the pipes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::contract::METRICS_FILE;
use crate::task::TaskMetrics;

/// Two numbers are no longer than this; whatever else is there is not ours.
const LONGEST: u64 = 64;

/// Where the line is, if there is one: not every container sees its control group.
#[derive(Debug, Clone)]
pub struct Metrics {
    path: PathBuf,
}

impl Metrics {
    /// In the folder of the pipes.
    pub fn beside(pipes: &Path) -> Self {
        Self { path: pipes.join(METRICS_FILE) }
    }

    /// What was noted last. The connector, foreign code, can write there, too: nothing that it puts there is waited for.
    pub fn latest(&self) -> Option<TaskMetrics> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::open(&self.path, flags, Mode::empty()).ok()?);
        let mut line = String::new();
        file.take(LONGEST).read_to_string(&mut line).ok()?;
        parse(&line)
    }
}

/// Nanoseconds of CPU and bytes of memory.
fn parse(line: &str) -> Option<TaskMetrics> {
    let (nanoseconds, bytes) = line.strip_suffix('\n')?.split_once(' ')?;
    Some(TaskMetrics {
        cpu_seconds: Duration::from_nanos(nanoseconds.parse().ok()?).as_secs_f64(),
        memory_bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Metrics, parse};
    use crate::sidecar::pipes;
    use crate::task::TaskMetrics;

    #[test]
    fn two_numbers_are_understood_and_nothing_else() {
        let used = Some(TaskMetrics { cpu_seconds: 2.5, memory_bytes: 4096 });
        for (line, expected) in [
            ("2500000000 4096\n", used),
            ("2500000000 4096", None),
            ("2500000000\n", None),
            ("2500000000 4096 1\n", None),
            ("-1 4096\n", None),
            ("99999999999999999999 4096\n", None),
            ("a b\n", None),
            ("", None),
        ] {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_a_connector_puts_there_instead_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let (metrics, path) = (Metrics::beside(folder.path()), folder.path().join("metrics"));
        assert_eq!(metrics.latest(), None, "nothing is there");
        std::fs::write(&path, "1000000 1\n").expect("a file");
        assert_eq!(metrics.latest(), Some(TaskMetrics { cpu_seconds: 0.001, memory_bytes: 1 }));
        std::fs::write(&path, "1".repeat(100_000)).expect("a file");
        assert_eq!(metrics.latest(), None, "a long file");
        std::fs::remove_file(&path).expect("a file");
        pipes::make(&path).expect("a FIFO that nobody writes to");
        assert_eq!(metrics.latest(), None);
        std::fs::remove_file(&path).expect("a FIFO");
        std::os::unix::fs::symlink("/proc/self/stat", &path).expect("a link");
        assert_eq!(metrics.latest(), None, "a link to elsewhere");
    }
}
