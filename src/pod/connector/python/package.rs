//! A connector as a Python package: its name, its version and what starts it. Pure.

use serde::{Deserialize, Serialize};

use crate::task::Image;

/// A version of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The name on the index, e.g. `airbyte-source-faker`.
    pub name: String,
    /// The version, which is the image's tag.
    pub version: String,
    /// The command that the image runs, e.g. `source-faker`.
    pub command: String,
}

impl Package {
    /// The package of the same name and version as the image; the error is why there is none.
    pub fn of(image: &Image) -> Result<Self, String> {
        let Image { package, version } = image;
        if version.contains(':') {
            return Err("a package has versions, no image digests".to_owned());
        }
        // `latest`, `dev`
        if !version.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("{version} is no version of a Python package, e.g. 7.2.1"));
        }
        let mut parts: Vec<&str> = package.split('/').collect();
        if parts.len() > 1 && (parts[0] == "localhost" || parts[0].contains(['.', ':'])) {
            parts.remove(0);
        }
        let command = parts.pop().unwrap_or_default();
        let name = match parts.pop() {
            Some(organization) => format!("{organization}-{command}"),
            None => command.to_owned(),
        };
        Ok(Self { name, version: version.clone(), command: command.to_owned() })
    }

    /// The requirement for pip and uv.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

/// What starts an installed connector, after the interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryPoint {
    /// A script in the environment's `bin`.
    Script(String),
    /// The function `run` of this module.
    Run(String),
    /// This module, run as a program.
    Module(String),
}

/// The parts of an installed package that can be started: the output of `contents.py`.
#[derive(Debug, Deserialize)]
pub struct Contents {
    /// Console scripts.
    pub scripts: Vec<String>,
    /// Files `MODULE/run.py` and `MODULE/__main__.py`.
    pub modules: Vec<String>,
}

impl Contents {
    /// The entry point of the connector, chosen as its image chooses it.
    pub fn entry_point(&self, package: &Package) -> Option<EntryPoint> {
        if self.scripts.contains(&package.command) {
            return Some(EntryPoint::Script(package.command.clone()));
        }
        if let [only] = self.scripts.as_slice() {
            return Some(EntryPoint::Script(only.clone()));
        }
        let module = package.command.replace(['-', '.'], "_");
        let has = |file: &str| self.modules.contains(&format!("{module}/{file}"));
        match (has("run.py"), has("__main__.py")) {
            (true, _) => Some(EntryPoint::Run(format!("{module}.run"))),
            (false, true) => Some(EntryPoint::Module(module)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Contents, EntryPoint, Package};

    #[test]
    fn a_package_has_the_name_and_version_of_its_image() {
        for (image, name, command) in [
            ("airbyte/source-faker:7.2.1", "airbyte-source-faker", "source-faker"),
            ("syncctl-test/odd:1", "syncctl-test-odd", "odd"),
            ("docker.io/airbyte/source-x:1", "airbyte-source-x", "source-x"),
            ("ghcr.io/org/source-x:1", "org-source-x", "source-x"),
            ("localhost:5000/org/team/source-x:1", "team-source-x", "source-x"),
            ("localhost/source-x:1", "source-x", "source-x"),
            ("source-x:1", "source-x", "source-x"),
        ] {
            let package = Package::of(&image.parse().expect("an image")).expect("a package");
            assert_eq!((package.name.as_str(), package.command.as_str()), (name, command), "{image}");
        }
    }

    #[test]
    fn a_digest_or_a_tag_without_a_number_is_no_version() {
        let digest = format!("airbyte/source-faker@sha256:{}", "ab".repeat(32));
        for (image, part) in [(digest.as_str(), "digests"), ("airbyte/source-faker:latest", "latest is no version")] {
            let why = Package::of(&image.parse().expect("an image")).expect_err("no package");
            assert!(why.contains(part), "{image}: {why}");
        }
    }

    #[test]
    fn the_entry_point_is_the_script_of_the_connectors_name_or_the_only_script_or_its_module() {
        let package = Package { name: "o-source-x".into(), version: "1".into(), command: "source-x".into() };
        for (label, scripts, modules, expected) in [
            ("its name", &["other", "source-x"][..], &[][..], Some(EntryPoint::Script("source-x".into()))),
            ("the only one", &["x"], &["source_x/run.py"], Some(EntryPoint::Script("x".into()))),
            ("none", &[], &["source_x/run.py", "source_x/__main__.py"], Some(EntryPoint::Run("source_x.run".into()))),
            ("a program", &[], &["source_x/__main__.py"], Some(EntryPoint::Module("source_x".into()))),
            ("two others", &["a", "b"], &[], None),
            ("another module", &[], &["source_y/run.py"], None),
        ] {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let contents = Contents { scripts: owned(scripts), modules: owned(modules) };
            assert_eq!(contents.entry_point(&package), expected, "{label}");
        }
    }
}
