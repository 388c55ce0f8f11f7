//! Landlock: a second barrier in kernels that have it. The mount namespace hides what must not be seen; this also closes
//! abstract Unix sockets, signals to other processes, and every further mount.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest version that is used. An older kernel restricts what it knows of it.
const NEWEST: ABI = ABI::V6;
/// Files for all: writing to a device or to a process's own settings changes no file.
const SPECIAL: [&str; 2] = ["/dev", "/proc"];

/// Restricts this thread and its future children to reading, executing, and writing in some directories. Returns the
/// kernel's version of Landlock, 0 without it.
pub(super) fn restrict(writable: &[PathBuf]) -> Result<u32, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        // The FIFOs are on a read-only mount: they are written to, and nothing else is.
        .add_rules(path_beneath_rules(["/"], AccessFs::from_read(NEWEST) | AccessFs::WriteFile))?
        .add_rules(path_beneath_rules(SPECIAL.iter().map(PathBuf::from).chain(writable.iter().cloned()), all))?;
    let status = ruleset.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi as u32,
        _ => 0,
    })
}
