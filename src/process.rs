//! What the system tells of the processes of this machine. Knows nothing of tasks; on a machine without `/proc` there is
//! nothing to know.

/// One process, by its `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// It has ended, and nobody has asked yet how.
    pub is_zombie: bool,
    /// The process that started it, or has adopted it.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// CPU time that it has used, in clock ticks.
    pub ticks: u64,
    /// The same of its children that have ended.
    pub ended_ticks: u64,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Pages of memory that it has now.
    pub pages: u64,
}

/// Looks at a process; `None`: there is none, or not for us.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may itself hold blanks.
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

/// The ids of all processes that can be seen.
pub fn ids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{ids, stat};

    #[test]
    fn a_child_has_this_process_for_its_parent_and_is_a_zombie_until_it_is_asked() {
        let me = std::process::id();
        assert!(ids().any(|id| id == me) && stat(me).is_some_and(|stat| !stat.is_zombie && stat.pages > 0));
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while stat(child.id()).is_some_and(|stat| !stat.is_zombie) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(stat(child.id()).is_some_and(|stat| stat.is_zombie && stat.parent == me));
        child.wait().expect("it has ended");
        assert_eq!(stat(child.id()), None);
    }
}
