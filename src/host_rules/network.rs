//! Networks in CIDR notation.

use std::net::IpAddr;

/// A network, of one address where the prefix is as long as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of this address with these many bits.
    pub(super) const fn new(address: IpAddr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// The first address, or any other one of it.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    pub(super) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// `10.0.0.0/8`, `fd00::/8` or an address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let given: IpAddr = address.parse().ok()?;
        let longest = length(given);
        let prefix = prefix.unwrap_or(longest);
        if prefix > longest {
            return None;
        }
        // Networks of IPv4 addresses that are written as IPv6 addresses.
        let address = given.to_canonical();
        let shortened = longest - length(address);
        if prefix < shortened {
            return Some(Self::new(given, prefix));
        }
        Some(Self::new(address, prefix - shortened))
    }

    /// Whether an address, in its canonical form, is in the network.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        self.address.is_ipv4() == address.is_ipv4() && (bits(self.address) ^ bits(address)) & mask == 0
    }
}

/// The number of bits of an address.
fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
