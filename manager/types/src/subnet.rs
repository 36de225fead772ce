//! Networks of either family, as an address and the length of its prefix.

use std::fmt::{self, Display};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address of one family, as a number.
pub trait Address: Copy + Eq + Display + FromStr + 'static {
    const BITS: u8;
    /// What a subnet looks like, for those who wrote it otherwise.
    const EXAMPLE: &'static str;
    fn to_number(self) -> u128;
    /// The lower [`Self::BITS`] bits count.
    fn from_number(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;
    const EXAMPLE: &'static str = "10.213.0.0/16";

    fn to_number(self) -> u128 {
        u32::from(self).into()
    }

    fn from_number(number: u128) -> Self {
        Self::from(number as u32)
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;
    const EXAMPLE: &'static str = "fd00:1::/64";

    fn to_number(self) -> u128 {
        self.into()
    }

    fn from_number(number: u128) -> Self {
        number.into()
    }
}

/// A network: `address` has no host bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subnet<A = Ipv4Addr> {
    pub address: A,
    pub prefix_len: u8,
}

pub type Subnet6 = Subnet<Ipv6Addr>;

impl<A: Address> Subnet<A> {
    /// The network that `address/prefix_len` lies in; `None` if the prefix is longer than an address.
    pub fn new(address: A, prefix_len: u8) -> Option<Self> {
        let host_bits = A::BITS.checked_sub(prefix_len)?;
        let hosts = 1u128.checked_shl(host_bits.into()).map_or(u128::MAX, |size| size - 1);
        Some(Self { address: A::from_number(address.to_number() & !hosts), prefix_len })
    }

    /// Whether `address` lies in the network.
    pub fn contains(self, address: A) -> bool {
        Self::new(address, self.prefix_len) == Some(self)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The `n`th address of the network (0 is the network's own); `None` beyond its end.
    pub fn nth(self, n: u32) -> Option<A> {
        let number = self.address.to_number().checked_add(n.into())?;
        let address = A::from_number(number);
        (address.to_number() == number && self.contains(address)).then_some(address)
    }
}

impl Subnet {
    /// Number of addresses, network and broadcast included.
    pub fn size(self) -> u64 {
        1u64 << (32 - u32::from(self.prefix_len.min(32)))
    }
}

impl<A: Display> Display for Subnet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Why a text is not a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseSubnetError {
    found: String,
    example: &'static str,
}

impl Display for ParseSubnetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected a subnet like `{}`, found `{}`", self.example, self.found)
    }
}

impl std::error::Error for ParseSubnetError {}

impl<A: Address> FromStr for Subnet<A> {
    type Err = ParseSubnetError;
    fn from_str(text: &str) -> Result<Self, ParseSubnetError> {
        let error = || ParseSubnetError { found: text.to_owned(), example: A::EXAMPLE };
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address = address.parse().map_err(|_| error())?;
        Self::new(address, prefix.parse().map_err(|_| error())?)
            .filter(|s| s.address == address)
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_parse_contain_and_count() {
        let net: Subnet = "10.213.0.0/16".parse().unwrap();
        assert_eq!(net.size(), 65_536);
        assert_eq!(net.nth(1), Some(Ipv4Addr::new(10, 213, 0, 1)));
        assert_eq!(net.nth(65_536), None);
        assert!(
            net.contains(Ipv4Addr::new(10, 213, 255, 255)) && !net.contains(Ipv4Addr::new(10, 214, 0, 0))
        );
        assert!(net.overlaps("10.0.0.0/8".parse().unwrap()) && !net.overlaps("10.0.0.0/24".parse().unwrap()));
        for text in ["10.213.0.1/16", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/64"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
        let last: Subnet = "255.255.255.0/24".parse().unwrap();
        assert_eq!((last.nth(255), last.nth(256)), (Some(Ipv4Addr::BROADCAST), None));
    }

    #[test]
    fn those_of_ipv6_do_the_same() {
        let net: Subnet6 = "fd00:1::/64".parse().unwrap();
        let at = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        assert_eq!(net.nth(1), Some(at("fd00:1::1")));
        assert!(net.contains(at("fd00:1::ffff:ffff:ffff:ffff")) && !net.contains(at("fd00:1:0:1::")));
        assert!(net.overlaps("::/0".parse().unwrap()) && !net.overlaps("fd00:2::/64".parse().unwrap()));
        let one: Subnet6 = "::1/128".parse().unwrap();
        assert_eq!((one.nth(0), one.nth(1)), (Some(Ipv6Addr::LOCALHOST), None));
        for (text, expected) in [("fd00:1::1/64", "like `fd00:1::/64`"), ("fd00::/129", "found `fd00::/129`")]
        {
            assert!(text.parse::<Subnet6>().unwrap_err().to_string().contains(expected), "{text}");
        }
    }
}
