//! Which hosts a destination may be at (`SYNCCTL_DESTINATION_HOSTS`): names, addresses and networks, each with an optional
//! port, and directories of Unix sockets.
//!
//! An address is checked after a name is resolved, and the connection goes to the address that was checked: a name that
//! leads elsewhere a moment later changes nothing. A rule that names a host trusts what its name server answers, but for
//! [special addresses](is_special), which only a rule for exactly these allows.
//!
//! Knows nothing of destinations and protocols.

mod address;
mod network;
mod rule;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use address::is_special;
use rule::Rule;

/// The variable that has the rules.
const VARIABLE: &str = "SYNCCTL_DESTINATION_HOSTS";
/// The rules of a service without any of its own: every host and address but the special ones, and no sockets of its
/// machine.
pub const SERVICE_DEFAULT: &str = "*";

/// The allowed hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    text: String,
    rules: Vec<Rule>,
}

/// Why a host is refused. Does not show what its name resolves to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No rule allows it.
    #[error("{0} is not among the hosts that destinations may be at ({VARIABLE})")]
    NotListed(String),
    /// Its address is a special one.
    #[error(
        "the address of {0} is link-local or that of a cloud's metadata, where destinations may be only if {VARIABLE} lists \
         exactly that address"
    )]
    Special(String),
    /// A Unix socket.
    #[error("the host is the directory of a Unix socket, where destinations may be only if {VARIABLE} lists it")]
    Socket,
}

impl FromStr for HostRules {
    type Err = String;

    /// Rules are separated by commas or spaces.
    fn from_str(text: &str) -> Result<Self, String> {
        let items = text.split([',', ' ', '\t', '\n', '\r']).filter(|item| !item.is_empty());
        let rules: Vec<Rule> = items.map(str::parse).collect::<Result<_, _>>()?;
        if rules.is_empty() {
            return Err("no host".to_owned());
        }
        Ok(Self { text: text.trim().to_owned(), rules })
    }
}

impl fmt::Display for HostRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl HostRules {
    /// Checks the directory of a Unix socket.
    pub fn check_socket(&self, directory: &Path) -> Result<(), Refused> {
        let is_allowed = self.rules.iter().any(|rule| rule.allows_socket(directory));
        is_allowed.then_some(()).ok_or(Refused::Socket)
    }

    /// Checks an address that `name` resolves to; `None` where the user has given the address itself.
    fn check(&self, name: Option<&str>, address: IpAddr, port: u16) -> Result<(), Refused> {
        let address = address.to_canonical();
        let shown = || name.map_or_else(|| SocketAddr::new(address, port).to_string(), |name| format!("{name}:{port}"));
        if self.rules.iter().any(|rule| rule.allows_address(address, port)) {
            return Ok(());
        }
        if is_special(address) {
            return Err(Refused::Special(shown()));
        }
        // A number in an unusual spelling is no name of a host.
        if self.rules.iter().any(|rule| rule.allows_name(name, port)) {
            return Ok(());
        }
        Err(Refused::NotListed(shown()))
    }

    /// Checks what can be checked within a short time before a task starts. A name that no rule allows and that does not
    /// resolve here may have an allowed address where the task runs, which checks again.
    pub fn check_soon(&self, name: &str, port: u16) -> Result<(), Refused> {
        const LIMIT: Duration = Duration::from_secs(2);
        if !self.rules.iter().any(|rule| rule.allows_name(Some(name), port) || rule.is_for_addresses(port)) {
            return Err(Refused::NotListed(format!("{name}:{port}")));
        }
        let (rules, name) = (self.clone(), name.to_owned());
        let (sender, receiver) = mpsc::sync_channel(1);
        // A look-up cannot be cancelled; the resolver ends it.
        let run = move || _ = sender.send(resolve(Some(&rules), &name, port));
        if thread::Builder::new().name("resolve".to_owned()).spawn(run).is_err() {
            return Ok(());
        }
        match receiver.recv_timeout(LIMIT) {
            Ok(Err(error)) => error.downcast::<Refused>().map_or(Ok(()), Err),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

/// The addresses of a host, as far as the rules allow them. An error of kind [`io::ErrorKind::PermissionDenied`] is a
/// [`Refused`]: no address is allowed.
pub fn resolve(rules: Option<&HostRules>, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let Some(rules) = rules else { return Ok((name, port).to_socket_addrs()?.collect()) };
    let given = name.parse::<IpAddr>().is_ok();
    let (mut allowed, mut refused) = (Vec::new(), None);
    for address in (name, port).to_socket_addrs()? {
        match rules.check(Some(name).filter(|_| !given), address.ip(), port) {
            Ok(()) => allowed.push(address),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(refused) if allowed.is_empty() => Err(io::Error::new(io::ErrorKind::PermissionDenied, refused)),
        _ => Ok(allowed),
    }
}

/// Whether an error is a [`Refused`], which no retry changes.
pub fn is_refused(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Refused>)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::{HostRules, Refused, SERVICE_DEFAULT, is_refused, resolve};

    fn rules(text: &str) -> HostRules {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn check(text: &str, name: Option<&str>, address: &str, port: u16) -> Result<(), Refused> {
        let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("{address}"));
        rules(text).check(name, address, port)
    }

    #[test]
    fn rules_allow_names_addresses_networks_and_ports() {
        for (text, name, address, port, expected) in [
            ("*", Some("db"), "203.0.113.5", 5432, true),
            ("*:5432", Some("db"), "203.0.113.5", 5433, false),
            ("*", None, "10.0.0.1", 5432, true),
            ("db.example.com", Some("db.example.com"), "10.0.0.1", 1, true),
            ("DB.example.com", Some("db.Example.COM."), "10.0.0.1", 1, true),
            ("db.example.com", Some("xdb.example.com"), "10.0.0.1", 1, false),
            ("db.example.com", Some("db.example.com.evil"), "10.0.0.1", 1, false),
            ("db.example.com:5432", Some("db.example.com"), "10.0.0.1", 5432, true),
            ("db.example.com:5432", Some("db.example.com"), "10.0.0.1", 22, false),
            ("*.example.com", Some("a.b.example.com"), "10.0.0.1", 1, true),
            ("*.example.com", Some("example.com"), "10.0.0.1", 1, false),
            ("*.example.com", Some("notexample.com"), "10.0.0.1", 1, false),
            ("*.example.com", Some(".example.com"), "10.0.0.1", 1, false),
            // The name is only that of the certificate where the address is given.
            ("db.example.com", None, "10.0.0.1", 1, false),
            ("10.0.0.0/8", None, "10.255.1.2", 1, true),
            ("10.1.2.3/8", Some("any"), "10.255.1.2", 1, true),
            ("10.0.0.0/8", Some("any"), "11.0.0.1", 1, false),
            ("10.0.0.0/8:5432", None, "10.0.0.1", 5433, false),
            ("10.0.0.0/8", None, "::ffff:10.0.0.1", 1, true),
            ("::ffff:10.0.0.0/104", None, "10.0.0.1", 1, true),
            ("10.0.0.7", None, "10.0.0.7", 1, true),
            ("10.0.0.7", None, "10.0.0.8", 1, false),
            ("fd00::/8", None, "fd12::1", 1, true),
            ("[fd00::/8]:5432", None, "fd12::1", 5432, true),
            ("[fd00::/8]:5432", None, "fd12::1", 1, false),
            ("::1", None, "::1", 1, true),
            ("a, 10.0.0.0/8\n b", Some("b"), "192.0.2.1", 1, true),
            ("0.0.0.0/0", None, "8.8.8.8", 1, true),
            ("0.0.0.0/0", None, "2001:db8::1", 1, false),
        ] {
            let checked = check(text, name, address, port);
            assert_eq!(checked.is_ok(), expected, "{text}: {name:?} {address} {port}: {checked:?}");
        }
    }

    #[test]
    fn special_addresses_need_a_rule_of_their_own_however_they_are_written() {
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "::ffff:100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ] {
            for text in
                [SERVICE_DEFAULT, "0.0.0.0/0, ::/0", "metadata", "*.internal, metadata, 100.64.0.0/10, 160.0.0.0/4"]
            {
                for name in [None, Some("metadata")] {
                    let checked = check(text, name, address, 80);
                    assert!(matches!(checked, Err(Refused::Special(_))), "{text}: {name:?} {address}: {checked:?}");
                }
            }
            assert_eq!(check(address, Some("metadata"), address, 80), Ok(()), "{address}");
        }
        assert_eq!(check("169.254.0.0/16", None, "169.254.169.254", 80), Ok(()));
        assert_eq!(check("fe80::/10", None, "fe80::1", 80), Ok(()));
        // Numbers as the resolver reads them.
        for host in ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.16689662", "fe80::1%lo"] {
            for text in [SERVICE_DEFAULT, "0xa9fea9fe.example.com"] {
                if let Ok(addresses) = resolve(Some(&rules(text)), host, 80) {
                    panic!("{text}: {host}: {addresses:?}");
                }
            }
        }
        let error = resolve(Some(&rules("db.example.com")), "127.1", 80).expect_err("not listed");
        assert!(is_refused(&error), "{error:?}");
        assert_eq!(resolve(Some(&rules("127.0.0.0/8")), "127.1", 80).expect("allowed").len(), 1);
    }

    #[test]
    fn sockets_need_a_rule_of_their_own() {
        let socket = Path::new("/run/postgresql");
        assert_eq!(rules(SERVICE_DEFAULT).check_socket(socket), Err(Refused::Socket));
        assert_eq!(rules("/run").check_socket(socket), Err(Refused::Socket));
        assert_eq!(rules("/run/postgresql/").check_socket(socket), Ok(()));
        assert_eq!(rules("/run/postgresql").check_socket(Path::new("/run/postgresql/../x")), Err(Refused::Socket));
    }

    #[test]
    fn a_name_that_does_not_resolve_here_is_left_to_the_task_only_if_an_address_could_be_allowed() {
        for (text, port, expected) in [
            ("*", 1, true),
            ("*.invalid", 1, true),
            ("10.0.0.0/8", 1, true),
            ("10.0.0.0/8:2", 1, false),
            ("db.example.com", 1, false),
            ("/run/postgresql", 1, false),
        ] {
            assert_eq!(rules(text).check_soon("no-such-host.invalid", port).is_ok(), expected, "{text} {port}");
        }
    }

    #[test]
    fn malformed_rules_are_refused() {
        for text in [
            "",
            ",",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/129",
            "a b/c",
            "db:0",
            "db:x",
            "db:70000",
            "a*.example.com",
            "*.",
            "http://db",
            "[::1",
            "[db]:1",
            "user@db",
            "256.1.1.1",
            "0x7f000001",
            "ex..ample",
            "-db",
        ] {
            assert!(text.parse::<HostRules>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn refusals_do_not_show_what_a_name_resolves_to() {
        let refused =
            check("10.0.0.0/8", Some("db.internal"), "192.168.7.9", 5432).expect_err("not listed").to_string();
        assert!(refused.contains("db.internal:5432") && !refused.contains("192.168"), "{refused}");
        let refused = check("*", Some("db.internal"), "169.254.169.254", 5432).expect_err("special").to_string();
        assert!(refused.contains("db.internal:5432") && !refused.contains("169.254"), "{refused}");
    }
}
