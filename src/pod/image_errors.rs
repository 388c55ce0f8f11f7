//! Classifies the errors of image pulls. Container runtimes give no error code, only the text of the registry or of the
//! transport. One list of phrases for the kubelet, Docker and Podman.

/// The registry answered that the image does not exist, or that we may not have it. In lower case.
const MISSING: [&str; 8] = [
    "manifest unknown",
    "name unknown",
    "not found",
    "does not exist",
    "denied",
    "unauthorized",
    "authorization failed",
    "authentication required",
];

/// The registry was not reached or is overloaded. Some of these texts contain a phrase of [`MISSING`]. Whole phrases: a
/// bare number would match digests. In lower case.
const TRANSIENT: [&str; 13] = [
    "429 too many",
    "status code 429",
    "toomanyrequests",
    "timeout",
    "deadline exceeded",
    "no such host",
    "pull qps exceeded",
    "connection refused",
    "connection reset",
    "network is unreachable",
    "server misbehaving",
    "service unavailable",
    "x509:",
];

/// Whether the text of a failed pull means that retrying is useless: the image does not exist, or access is refused.
pub fn is_image_missing(text: &str) -> bool {
    let text = text.to_lowercase();
    let contains = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
    contains(&MISSING) && !contains(&TRANSIENT)
}

#[cfg(test)]
mod tests {
    use super::is_image_missing;

    #[test]
    fn a_missing_image_differs_from_an_unreachable_registry() {
        for (text, expected) in [
            ("manifest for x/y:1 not found: manifest unknown: manifest unknown", true),
            ("pull access denied for x/y, repository does not exist or may require 'docker login'", true),
            ("reading manifest 1 in docker.io/x/y: requested access to the resource is denied", true),
            ("failed to authorize: 401 Unauthorized", true),
            ("dial tcp: lookup registry-1.docker.io on 10.0.0.1:53: no such host", false),
            ("dial tcp 127.0.0.1:1: connect: connection refused", false),
            ("toomanyrequests: You have reached your pull rate limit.", false),
            ("denied: 429 Too Many Requests", false),
            ("an unknown text", false),
            ("", false),
        ] {
            assert_eq!(is_image_missing(text), expected, "{text}");
        }
    }
}
