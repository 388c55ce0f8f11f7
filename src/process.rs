//! Reads `/proc`. Without `/proc` no process is visible.

/// One process, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// It has ended, but its parent has not waited for it yet.
    pub is_zombie: bool,
    /// The process that started or adopted it.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// CPU time in clock ticks.
    pub ticks: u64,
    /// CPU time of its children that have ended, in clock ticks.
    pub ended_ticks: u64,
    /// Start time in clock ticks since boot.
    pub started: u64,
    /// Resident memory in pages.
    pub pages: u64,
}

/// `None`: there is no such process, or it is not visible.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may contain blanks.
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        ticks: number(11)? + number(12)?,
        ended_ticks: number(13)? + number(14)?,
        started: number(19)?,
        pages: number(21)?,
    })
}

/// The ids of all visible processes.
pub fn ids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{ids, stat};

    #[test]
    fn a_child_has_this_parent_and_is_a_zombie_until_it_is_waited_for() {
        let me = std::process::id();
        assert!(ids().any(|id| id == me) && stat(me).is_some_and(|stat| !stat.is_zombie && stat.pages > 0));
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let deadline = std::time::Instant::now() + std::time::Duration::from_mins(5);
        while stat(child.id()).is_some_and(|stat| !stat.is_zombie) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(stat(child.id()).is_some_and(|stat| stat.is_zombie && stat.parent == me));
        child.wait().expect("it has ended");
        assert_eq!(stat(child.id()), None);
    }
}
