//! Addresses and ranges, strictly: one spelling, no IPv4 inside IPv6.

use crate::model::Invalid;
use ipnet::IpNet;
use std::net::IpAddr;

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address; leading zeros and IPv4-mapped IPv6 are refused.
#[must_use]
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.parse::<IpAddr>().ok()? {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

/// Checks an address.
pub fn check(field: &str, text: &str, problems: &mut Vec<Invalid>) -> Option<IpAddr> {
    let address = parse_ip(text);
    if address.is_none() {
        problems.push(Invalid::invalid(field, text, NOT_AN_IP));
    }
    address
}

/// Checks a range.
pub fn check_cidr(field: &str, text: &str, problems: &mut Vec<Invalid>) -> Option<IpNet> {
    let cidr = text.parse::<IpNet>().ok();
    if cidr.is_none() {
        problems.push(Invalid::invalid(field, text, NOT_A_CIDR));
    }
    cidr
}

/// Kubernetes' ValidateEndpointIP: an address that traffic may be sent to.
pub fn check_endpoint(field: &str, text: &str, problems: &mut Vec<Invalid>) {
    let Some(address) = check(field, text, problems) else { return };
    let mut refuse = |detail: &str| problems.push(Invalid::invalid(field, text, detail));
    if address.is_unspecified() {
        refuse(&format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, multicast) = match address {
        IpAddr::V4(address) => (address.is_link_local(), address.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(address) => (address.segments()[0] & 0xffc0 == 0xfe80, address.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}
