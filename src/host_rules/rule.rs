//! One rule: its syntax, and what it allows.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::address::{is_special, is_special_network};
use super::network::Network;

/// What a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// `*`: every name and address.
    Any { port: Option<u16> },
    /// `db.example.com`, in lower case.
    Name { name: String, port: Option<u16> },
    /// `*.example.com`: the names below one, which begins with a dot here.
    Suffix { suffix: String, port: Option<u16> },
    /// `10.0.0.0/8`, or one address.
    Network { network: Network, port: Option<u16> },
    /// The directory of a Unix socket.
    Socket(PathBuf),
}

impl Rule {
    pub(super) fn allows_socket(&self, directory: &Path) -> bool {
        matches!(self, Self::Socket(allowed) if allowed.components().eq(directory.components()))
    }

    /// Whether it is about addresses, of whatever name.
    pub(super) fn is_for_addresses(&self, port: u16) -> bool {
        matches!(self, Self::Network { port: allowed, .. } if allowed.is_none_or(|allowed| allowed == port))
    }

    /// Whether it is about addresses, and about this one. A special address needs a rule for special addresses.
    pub(super) fn allows_address(&self, address: IpAddr, port: u16) -> bool {
        let Self::Network { network, port: allowed } = self else { return false };
        allowed.is_none_or(|allowed| allowed == port)
            && network.contains(address)
            && (!is_special(address) || is_special_network(network))
    }

    /// Whether it allows a host by its name; `None`: one that has only an address.
    pub(super) fn allows_name(&self, name: Option<&str>, port: u16) -> bool {
        let name = name.map(normal);
        let (matches, allowed) = match self {
            Self::Any { port } => (true, port),
            Self::Name { name: allowed, port } => (name.as_ref() == Some(allowed), port),
            Self::Suffix { suffix, port } => {
                (name.is_some_and(|name| name.len() > suffix.len() && name.ends_with(suffix.as_str())), port)
            }
            Self::Network { .. } | Self::Socket(_) => return false,
        };
        matches && allowed.is_none_or(|allowed| allowed == port)
    }
}

/// A name as it is compared.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Socket(PathBuf::from(text)));
        }
        let (host, port) = split_port(text).ok_or_else(|| invalid(text))?;
        if let Some(network) = Network::parse(host) {
            return Ok(Self::Network { network, port });
        }
        let suffix = host.strip_prefix("*.");
        let name = suffix.unwrap_or(host);
        match (suffix, is_name(name)) {
            _ if host == "*" => Ok(Self::Any { port }),
            (None, true) => Ok(Self::Name { name: normal(name), port }),
            (Some(_), true) => Ok(Self::Suffix { suffix: format!(".{}", normal(name)), port }),
            (_, false) => Err(invalid(text)),
        }
    }
}

fn invalid(text: &str) -> String {
    format!("{text:?} is no name, address, network or directory of a socket")
}

/// The host and the port of `host`, `host:port`, `[host]:port`, or an IPv6 address.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0).map(Some);
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        // Only an IPv6 address is in brackets.
        host.contains(':').then_some(())?;
        return Some((host, if rest.is_empty() { None } else { port(rest.strip_prefix(':')?)? }));
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, number)) => Some((host, port(number)?)),
        None => Some((text, None)),
    }
}

/// Whether a text is the name of a host, and not a number in an unusual spelling.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    text.split('.').all(is_label) && !is_number
}
