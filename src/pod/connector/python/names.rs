//! What an image is called on PyPI. Pure.

use crate::task::Image;

/// A connector as a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The distribution, e.g. `airbyte-source-faker`.
    pub name: String,
    /// The version, which is the image's tag.
    pub version: String,
    /// The command that its images run, e.g. `source-faker`.
    pub command: String,
}

impl Package {
    /// The package of the same name and version; the error is why there cannot be one.
    pub fn of(image: &Image) -> Result<Self, String> {
        let Image { package, version } = image;
        if version.contains(':') {
            return Err("PyPI knows versions, and not the digests of images".to_owned());
        }
        // `latest`, `dev`: tags that no package can have as its version.
        if !version.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("PyPI knows versions such as 7.2.1, and {version} is none"));
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

    /// How pip and uv take it.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

/// Names count as equal however they separate their words.
pub fn normalized(name: &str) -> String {
    let mut words: Vec<&str> = name.split(['-', '_', '.']).collect();
    words.retain(|word| !word.is_empty());
    words.join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::{Package, normalized};

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
        for (image, part) in [(digest.as_str(), "digests"), ("airbyte/source-faker:latest", "latest is none")] {
            let why = Package::of(&image.parse().expect("an image")).expect_err("no package");
            assert!(why.contains(part), "{image}: {why}");
        }
    }

    #[test]
    fn names_are_equal_however_their_words_are_separated() {
        assert_eq!(normalized("Airbyte_source.Faker"), normalized("airbyte-source-faker"));
    }
}
