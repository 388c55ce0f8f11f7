//! Addresses that lead to a machine's own cloud or network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::network::Network;

/// Networks whose services answer to whoever can reach them: link-local addresses, and those of metadata services of clouds
/// outside of them. Instance credentials are there.
const SPECIAL: [Network; 7] = [
    Network::new(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    Network::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    // AWS and Google Cloud over IPv6, Alibaba Cloud, Azure, Oracle Cloud.
    Network::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)), 128),
    Network::new(IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), 128),
    Network::new(IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 32),
    Network::new(IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 32),
    Network::new(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)), 32),
];

/// Prefixes of IPv6 addresses that translators and tunnels turn into the IPv4 address in their last four bytes: NAT64, its
/// local form, IPv4-compatible and IPv4-translated addresses.
const TRANSLATED: [Network; 4] = [
    Network::new(IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)), 96),
    Network::new(IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0)), 48),
    Network::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 96),
    Network::new(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0)), 96),
];

/// 6to4, which has the IPv4 address behind this prefix.
const SIX_TO_FOUR: u16 = 0x2002;

/// Whether an address, or the one that it is translated to, is link-local or that of a metadata service.
pub(super) fn is_special(address: IpAddr) -> bool {
    let is_listed = |address: IpAddr| SPECIAL.iter().any(|network| network.contains(address));
    is_listed(address) || embedded(address).is_some_and(|address| is_listed(IpAddr::V4(address)))
}

/// Whether all addresses of a network are special: a rule for it is about these.
pub(super) fn is_special_network(network: &Network) -> bool {
    let is_within = |outer: &Network| outer.prefix() <= network.prefix() && outer.contains(network.address());
    let embedded = embedded(network.address()).map(IpAddr::V4).filter(|_| network.prefix() == 128);
    SPECIAL.iter().any(is_within) || embedded.is_some_and(is_special)
}

fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let bytes = address.octets();
    let at = |start: usize| Ipv4Addr::new(bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]);
    if address.segments()[0] == SIX_TO_FOUR {
        return Some(at(2));
    }
    TRANSLATED.iter().any(|prefix| prefix.contains(IpAddr::V6(address))).then(|| at(12))
}
