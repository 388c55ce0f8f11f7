//! Patterns for ids and for images: which ones a token may use, and which images may run at all. Pure.

use std::fmt;
use std::str::FromStr;

use crate::task::Image;

/// Matches whole texts: `*` stands for any characters, also none and also slashes, `?` for one. Case counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Whether the pattern matches all of the text.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text): (Vec<char>, Vec<char>) = (self.0.chars().collect(), text.chars().collect());
        let (mut at, mut from) = (0, 0);
        // Behind the last `*`, and where what it stands for ends.
        let mut star: Option<(usize, usize)> = None;
        while from < text.len() {
            match pattern.get(at) {
                Some('*') => {
                    at += 1;
                    star = Some((at, from));
                }
                Some(&c) if c == '?' || c == text[from] => {
                    at += 1;
                    from += 1;
                }
                _ => {
                    let Some((behind, end)) = star else { return false };
                    at = behind;
                    from = end + 1;
                    star = Some((behind, from));
                }
            }
        }
        pattern[at..].iter().all(|c| *c == '*')
    }

    fn is_any(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            return Err("a pattern is blank or contains control characters".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The registry of images that name none, and what else it is called.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIAS: &str = "index.docker.io";
/// The namespace on Docker Hub of images that name none.
const LIBRARY: &str = "library";

/// A pattern for images such as `airbyte/source-*:7.*`, `ghcr.io/team/*`, `*@sha256:*`.
///
/// Registry, path and version are matched one by one, as the container runtime reads them, so that a `*` never reaches from
/// one into the next. Without a registry it is Docker Hub; the package `*` alone is that of every registry. `:*`, and no
/// version, is any tag and any digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    text: String,
    /// `None`: any package.
    package: Option<[Glob; 2]>,
    version: VersionPattern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum VersionPattern {
    Any,
    Tag(Glob),
    Digest(Glob),
}

impl ImagePattern {
    /// Whether an image is one of those.
    pub fn matches(&self, image: &Image) -> bool {
        let [registry, path] = registry_and_path(&image.package);
        let is_package = self
            .package
            .as_ref()
            .is_none_or(|[of_registry, of_path]| of_registry.matches(&registry) && of_path.matches(&path));
        let is_version = match &self.version {
            VersionPattern::Any => true,
            VersionPattern::Tag(tag) => !image.has_digest() && tag.matches(&image.version),
            VersionPattern::Digest(digest) => image.has_digest() && digest.matches(&image.version.to_ascii_lowercase()),
        };
        is_package && is_version
    }
}

/// The registry and the path in it, as container runtimes complete the name of an image or a pattern for it.
fn registry_and_path(package: &str) -> [String; 2] {
    let is_registry = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let (registry, path) = match package.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first.to_ascii_lowercase(), rest),
        _ => (DOCKER_HUB.to_owned(), package),
    };
    let registry = if registry == DOCKER_HUB_ALIAS { DOCKER_HUB.to_owned() } else { registry };
    let is_of_library = registry == DOCKER_HUB && !path.contains('/') && !Glob(path.to_owned()).is_any();
    let path = if is_of_library { format!("{LIBRARY}/{path}") } else { path.to_owned() };
    [registry, path]
}

impl FromStr for ImagePattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = |why: &str| format!("{text:?} is not a pattern for images: {why}, as in airbyte/source-*:7.*");
        let (name, version) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = Glob(digest.to_ascii_lowercase());
                if !digest.is_any() && !digest.0.starts_with("sha256:") || digest.0.is_empty() {
                    return Err(invalid("expected sha256: or * after the @"));
                }
                (name, VersionPattern::Digest(digest))
            }
            None => match text.rsplit_once(':') {
                Some((_, "")) => return Err(invalid("expected a version after the colon")),
                Some((name, tag)) if !tag.contains('/') => (name, VersionPattern::Tag(Glob(tag.to_owned()))),
                _ => (text, VersionPattern::Any),
            },
        };
        let version = match version {
            VersionPattern::Tag(tag) if tag.is_any() => VersionPattern::Any,
            version => version,
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:*?".contains(c);
        if name.is_empty() || name.split('/').any(str::is_empty) || !text.replacen('@', ":", 1).chars().all(is_allowed)
        {
            return Err(invalid("expected a package of letters, digits, . _ - / and the wildcards * and ?"));
        }
        let [registry, path] = registry_and_path(name);
        if path.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b':') {
            return Err(invalid("packages are in lower case, and only a registry has a port"));
        }
        let is_any = Glob(name.to_owned()).is_any();
        let package = (!is_any).then_some([Glob(registry), Glob(path)]);
        Ok(Self { text: text.to_owned(), package, version })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The word of an [`ImagePolicy`] that forbids tags, which can be moved to another image.
const REQUIRE_DIGEST: &str = "require-digest";

/// Which images may run, whoever asks: patterns and the word `require-digest`, separated by commas or blanks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImagePolicy {
    /// Empty: any image.
    patterns: Vec<ImagePattern>,
    requires_digest: bool,
}

impl ImagePolicy {
    /// Whether an image may run; the error names the rule.
    pub fn check(&self, image: &Image) -> Result<(), String> {
        if self.requires_digest && !image.has_digest() {
            return Err(format!(
                "image {image} is refused by SYNCCTL_IMAGE_POLICY: it requires a digest, as in {}@sha256:…",
                image.package
            ));
        }
        if !self.patterns.is_empty() && !self.patterns.iter().any(|pattern| pattern.matches(image)) {
            let allowed = list(&self.patterns);
            return Err(format!("image {image} is refused by SYNCCTL_IMAGE_POLICY: it allows {allowed}"));
        }
        Ok(())
    }
}

impl FromStr for ImagePolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut policy = Self::default();
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        for word in words {
            if word == REQUIRE_DIGEST {
                policy.requires_digest = true;
            } else {
                policy.patterns.push(word.parse()?);
            }
        }
        if policy == Self::default() {
            return Err("it contains no pattern: set one, or unset it to allow every image".to_owned());
        }
        Ok(policy)
    }
}

/// Patterns, for a message.
pub fn list<T: fmt::Display>(patterns: &[T]) -> String {
    patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{Glob, ImagePattern, ImagePolicy};
    use crate::task::Image;

    fn image(text: &str) -> Image {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    /// An image with a digest.
    fn digest(package: &str) -> Image {
        image(&format!("{package}@sha256:{}", "aB".repeat(32)))
    }

    #[test]
    fn globs_match_whole_texts() {
        for (pattern, matching, others) in [
            ("a-*", &["a-", "a-1", "a-b/c", "a-ä"][..], &["a", "b-a-1", "A-1", " a-1", ""][..]),
            ("*", &["", "x", "a/b"], &[]),
            ("?", &["x", "ä"], &["", "xy"]),
            ("a*b*c", &["abc", "aXbXbc", "abcbc"], &["abcd", "ab", "acb"]),
            ("plain", &["plain"], &["plain2", "Plain", "plain\n"]),
            ("*-eu", &["a-eu", "-eu", "-eu-eu"], &["a-eu2"]),
        ] {
            let glob: Glob = pattern.parse().expect("a pattern");
            assert!(matching.iter().all(|text| glob.matches(text)), "{pattern}");
            assert!(!others.iter().any(|text| glob.matches(text)), "{pattern}");
        }
        for blank in ["", "  ", "a\nb"] {
            assert!(blank.parse::<Glob>().is_err(), "{blank:?}");
        }
        // Linear in the text for each star: no pattern takes long.
        assert!(!Glob("*a".repeat(30) + "b").matches(&"a".repeat(5000)));
    }

    #[test]
    fn images_are_compared_as_a_container_runtime_reads_them() {
        for (pattern, matching, others) in [
            (
                "airbyte/*",
                &["airbyte/source-x:1", "docker.io/airbyte/source-x:1", "index.docker.io/airbyte/x:latest"][..],
                &[
                    "evil/airbyte:1",
                    "ghcr.io/airbyte/source-x:1",
                    "localhost/airbyte/x:1",
                    "Airbyte/x:1",
                    "airbyte:5000/x:1",
                    "airbyte.evil.io/x:1",
                    "docker.io.evil.io/airbyte/x:1",
                    "evil.io/docker.io/airbyte/x:1",
                    "airbyte-evil/x:1",
                    "airbyte:1",
                    "docker.io:443/airbyte/x:1",
                ][..],
            ),
            ("docker.io/airbyte/*", &["airbyte/x:1"], &["quay.io/airbyte/x:1"]),
            ("docker.io/*", &["airbyte/x:1", "x:1"], &["quay.io/x:1"]),
            ("DOCKER.IO/airbyte/x", &["airbyte/x:1"], &[]),
            ("source-*", &["source-x:1", "library/source-x:1"], &["source-x/evil:1", "a/source-x:1"]),
            ("*/source-x", &["evil/source-x:1"], &["quay.io/a/source-x:1"]),
            (
                "*.example.com/team/*",
                &["r.example.com/team/x:1"],
                &["evil.io/x.example.com/team/x:1", "example.com/team/x:1"],
            ),
            ("r.io:5000/*", &["r.io:5000/a/b:1", "R.IO:5000/a:1"], &["r.io/a:1", "r.io:5001/a:1"]),
            ("*", &["quay.io/a:1", "a:1"], &[]),
            ("airbyte/x:7.*", &["airbyte/x:7.1"], &["airbyte/x:70", "airbyte/x:8.7.1", "airbyte/x:v7.1"]),
            ("airbyte/x:*", &["airbyte/x:7"], &["airbyte/xy:7"]),
            ("*:1", &["quay.io/a:1"], &["quay.io/a:11"]),
            ("*@sha256:*", &[], &["airbyte/x:7", "airbyte/x:sha256"]),
        ] {
            let parsed: ImagePattern = pattern.parse().unwrap_or_else(|error| panic!("{error}"));
            for text in matching {
                assert!(parsed.matches(&image(text)), "{pattern} {text}");
            }
            for text in others {
                assert!(!parsed.matches(&image(text)), "{pattern} {text}");
            }
        }
        for (pattern, expected) in [
            ("*@sha256:*", true),
            ("airbyte/*@sha256:*", true),
            ("airbyte/x", true),
            ("airbyte/x:*", true),
            ("*@*", true),
        ]
        .into_iter()
        .chain([
            ("airbyte/x:7", false),
            ("evil/*@sha256:*", false),
            ("*@sha256:00*", false),
            ("*:sha256*", false),
        ]) {
            let parsed: ImagePattern = pattern.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.matches(&digest("airbyte/x")), expected, "{pattern}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for text in [
            "",
            ":1",
            "a:",
            "/a",
            "a//b",
            "a/",
            "a@",
            "a@md5:1",
            "@sha256:*",
            "a b",
            "!a",
            "a/B",
            "a/b:c/d",
            "a,b",
            "{a}",
        ] {
            assert!(text.parse::<ImagePattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn policy_names_its_rule() {
        let policy: ImagePolicy = " airbyte/*, ghcr.io/team/*\n".parse().expect("a policy");
        assert_eq!(policy.check(&image("airbyte/x:1")), Ok(()));
        let error = policy.check(&image("evil/x:1")).expect_err("not allowed");
        assert_eq!(error, "image evil/x:1 is refused by SYNCCTL_IMAGE_POLICY: it allows airbyte/*, ghcr.io/team/*");
        let policy: ImagePolicy = "require-digest,airbyte/*".parse().expect("a policy");
        assert_eq!(policy.check(&digest("airbyte/x")), Ok(()));
        assert!(policy.check(&digest("evil/x")).expect_err("not allowed").contains("it allows airbyte/*"));
        assert!(policy.check(&image("airbyte/x:1")).expect_err("a tag").contains("requires a digest"));
        let policy: ImagePolicy = "require-digest".parse().expect("a policy");
        assert_eq!(policy.check(&digest("evil/x")), Ok(()));
        assert!(policy.check(&image("evil/x:1")).is_err());
        assert_eq!(ImagePolicy::default().check(&image("evil/x:1")), Ok(()));
        assert!(" ,, ".parse::<ImagePolicy>().expect_err("empty").contains("no pattern"));
        assert!("airbyte/*,!evil".parse::<ImagePolicy>().is_err());
    }
}
