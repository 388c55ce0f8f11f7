//! `syncctl image`: this program as a container image, without Docker.
//!
//! The archive has the format of `docker save`: `manifest.json`, the image's configuration, one layer. Docker, containerd,
//! Podman and kind load it.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::failure::{Class, Failure};
use crate::output;

/// Write this program as a container image to stdout
///
/// Load it with `docker load`, `ctr -n k8s.io images import` or `kind load image-archive`, or push it to a registry of
/// the cluster, and set SYNCCTL_SIDECAR_IMAGE to its name.
#[derive(Debug, clap::Args)]
pub struct ImageFileArgs {
    /// Name and tag of the image
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("syncctl:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

/// The path of the program in the image; the Pod's command contains it.
const PATH: &str = "syncctl";
/// The architecture in the terms of container images.
const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };

pub(super) fn run(args: &ImageFileArgs) -> u8 {
    write(&args.name).map_or_else(|failure| output::explain(&failure), |()| 0)
}

fn write(name: &str) -> Result<(), Failure> {
    name.parse::<crate::task::Image>().map_err(|error| Failure::new(Class::Usage, format!("--name: {error}")))?;
    if output::is_terminal() {
        return Err(Failure::new(
            Class::Usage,
            "cannot write an image archive to a terminal: redirect stdout, e.g. syncctl image > syncctl.tar",
        ));
    }
    let internal =
        |what: &str, error: &dyn std::fmt::Display| Failure::new(Class::Internal, format!("{what}: {error}"));
    let program = std::env::current_exe()
        .and_then(std::fs::read)
        .map_err(|error| internal("cannot read the file of this program", &error))?;
    if needs_loader(&program) {
        let text = "this syncctl is linked dynamically and cannot run in an image without libraries";
        return Err(
            Failure::new(Class::Usage, text).with_hint("build it with the settings of .cargo/config.toml: make build")
        );
    }
    let archive = archive(name, &program).map_err(|error| internal("cannot create the archive", &error))?;
    output::print_file(&archive).map_err(|error| internal("cannot write the archive to stdout", &error))
}

fn archive(name: &str, program: &[u8]) -> std::io::Result<Vec<u8>> {
    let layer = tar_of(&[(PATH, program, 0o755)])?;
    let diff_id = format!("sha256:{}", sha256(&layer));
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Entrypoint": [format!("/{PATH}")], "User": "65532:65532", "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "syncctl image"}],
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    tar_of(&[
        ("manifest.json", manifest.as_bytes(), 0o644),
        (&config_name, config.as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
    ])
}

/// Without times and owners, so that the same program results in the same image.
fn tar_of(files: &[(&str, &[u8], u32)]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, path, *bytes)?;
    }
    builder.into_inner()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Whether an ELF file (64 bit, little endian) names a dynamic loader in a program header of type `PT_INTERP`.
fn needs_loader(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| program.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at: usize| program.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(offset), Some(size), Some(count)) = (u32_at(0x20), u16_at(0x36), u16_at(0x38)) else { return true };
    (0..usize::from(count)).any(|index| u32_at(offset as usize + index * usize::from(size)) == Some(PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::{archive, needs_loader};
    use std::collections::BTreeMap;
    use std::io::Read;

    fn unpack(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            files.insert(path, content);
        }
        files
    }

    #[test]
    fn the_archive_is_reproducible_and_has_one_layer_with_one_file() {
        let bytes = archive("syncctl:1", b"program").expect("an archive");
        assert_eq!(bytes, archive("syncctl:1", b"program").expect("an archive"));
        let files = unpack(&bytes);
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).expect("JSON");
        assert_eq!(manifest[0]["RepoTags"][0], "syncctl:1");
        let config: serde_json::Value =
            serde_json::from_slice(&files[manifest[0]["Config"].as_str().expect("a name")]).expect("JSON");
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", super::sha256(&files["layer.tar"])));
        assert_eq!(unpack(&files["layer.tar"])["syncctl"], b"program");
    }

    #[test]
    fn this_program_needs_no_loader_and_system_programs_do() {
        let own = std::fs::read(std::env::current_exe().expect("a path")).expect("a file");
        assert!(!needs_loader(&own));
        assert!(needs_loader(&std::fs::read("/bin/ls").expect("a dynamic program")));
    }
}
