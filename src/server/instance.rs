//! Which instance this process is: a name that stays the same over restarts, for metrics and the Lease.

use std::path::Path;

use uuid::Uuid;

/// `~/.syncctl/instance_id`. Where it can be neither read nor written the name is new each time.
pub fn kept() -> String {
    let home = std::env::home_dir().unwrap_or_default();
    let path = home.join(".syncctl").join("instance_id");
    kept_at(&path).unwrap_or_else(|error| {
        let path = path.display();
        tracing::warn!(%error, %path, "the instance id is not kept: set SYNCCTL_INSTANCE_ID to give this process a name");
        Uuid::new_v4().to_string()
    })
}

fn kept_at(path: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let id = Uuid::new_v4().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
        // Renamed, so that two processes that start at once never see half a name.
        let new = folder.join(format!("instance_id.{id}"));
        std::fs::write(&new, format!("{id}\n"))?;
        std::fs::rename(&new, path)?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::kept_at;

    #[test]
    fn a_name_is_kept_and_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new").join("instance_id");
        let first = kept_at(&path).expect("it can be written");
        assert_eq!(kept_at(&path).expect("it is there"), first);
        std::fs::write(&path, "").expect("a file");
        assert_ne!(kept_at(&path).expect("an empty file is none"), first);
        assert!(kept_at(std::path::Path::new("/proc/nowhere/instance_id")).is_err());
    }
}
