//! Where a server is: a name or an address with a port, or the directory of a Unix socket.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use postgres::Config;
use postgres::config::Host;

const DEFAULT_PORT: u16 = 5432;
/// One spelling for the addresses of this machine.
const LOOPBACK: &str = "localhost";

/// One host of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// What a certificate must name; or the directory of a Unix socket, which begins with a slash.
    pub(super) name: String,
    /// Where to connect instead of looking up the name.
    address: Option<IpAddr>,
    pub(super) port: u16,
}

/// Where to connect.
pub(super) enum Place<'a> {
    /// A name or an address.
    Network(Cow<'a, str>),
    /// The directory of a Unix socket.
    Socket(&'a Path),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') && !self.is_socket() {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl Endpoint {
    /// The hosts of a configuration of the driver.
    pub(super) fn all(config: &Config) -> Result<Vec<Self>, String> {
        let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
        let count = hosts.len().max(addresses.len());
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err("names a different number of host and hostaddr".to_owned());
        }
        if ports.len() > 1 && ports.len() != count {
            return Err("names a different number of ports and hosts".to_owned());
        }
        let endpoint = |index: usize| {
            let address = addresses.get(index).copied();
            let name = match (hosts.get(index), address) {
                (Some(Host::Tcp(name)), _) => name.clone(),
                (Some(Host::Unix(path)), None) => {
                    path.to_str().ok_or("names a directory that is not UTF-8")?.to_owned()
                }
                (_, Some(address)) => address.to_string(),
                (None, None) => String::new(),
            };
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
            Ok(Self { name, address, port })
        };
        (0..count).map(endpoint).collect()
    }

    pub(super) fn place(&self) -> Place<'_> {
        match self.address {
            Some(address) => Place::Network(address.to_string().into()),
            None if self.name.starts_with('/') => Place::Socket(Path::new(&self.name)),
            None => Place::Network(self.name.as_str().into()),
        }
    }

    pub(super) fn is_socket(&self) -> bool {
        matches!(self.place(), Place::Socket(_))
    }

    /// Name and address in one spelling, each with the port.
    pub(super) fn spellings(&self) -> impl Iterator<Item = (String, u16)> {
        let of_name = |name: &str| match name.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => LOOPBACK.to_owned(),
            Ok(address) => address.to_string(),
            Err(_) if name.starts_with('/') => name.trim_end_matches('/').to_owned(),
            Err(_) => name.trim_end_matches('.').to_ascii_lowercase(),
        };
        let address = self.address.map(|address| address.to_string());
        let port = self.port;
        [Some(of_name(&self.name)), address.as_deref().map(of_name)].into_iter().flatten().map(move |name| (name, port))
    }
}
