//! Pools of ClusterIPs and NodePorts: which numbers are free, and which one is next. Pure; a clone costs O(1), every
//! operation O(log n).
//!
//! Dynamic allocation leaves a static band at the low end for addresses that users choose (KEP-3070 for addresses,
//! KEP-3668 for ports) and enters it only when the rest is full. A pool knows no owners: that the numbers taken are
//! those that services hold is kept by `State::replace`, its only user.

use ipnet::IpNet;
use rpds::RedBlackTreeMapSync;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of numbers, each free or taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    first: u128,
    last: u128,
    /// First number of the dynamic band; below it lies the static one.
    dynamic: u128,
    /// Maximal free intervals: last number to first.
    free: RedBlackTreeMapSync<u128, u128>,
}

impl Pool {
    /// A pool without numbers.
    #[must_use]
    pub fn empty() -> Self {
        Self { first: 1, last: 0, dynamic: 1, free: RedBlackTreeMapSync::new_sync() }
    }

    /// All free; `static_band` numbers at the low end are kept for explicit requests.
    #[must_use]
    pub fn new(first: u128, last: u128, static_band: u128) -> Self {
        if first > last {
            return Self::empty();
        }
        let dynamic = first.saturating_add(static_band).min(last);
        let mut free = RedBlackTreeMapSync::new_sync();
        free.insert_mut(last, first);
        Self { first, last, dynamic, free }
    }

    /// Ports `first..=last`.
    #[must_use]
    pub fn of_ports(first: u16, last: u16) -> Self {
        let size = (u128::from(last) + 1).saturating_sub(u128::from(first));
        Self::new(first.into(), last.into(), port_band(size))
    }

    /// The number belongs to the pool.
    #[must_use]
    pub fn contains(&self, number: u128) -> bool {
        self.first <= number && number <= self.last
    }

    /// The number belongs to the pool and nobody has it.
    #[must_use]
    pub fn is_free(&self, number: u128) -> bool {
        self.free_from(number) == Some(number)
    }

    /// Takes a number; false if it isn't free.
    pub fn take(&mut self, number: u128) -> bool {
        let Some((end, start)) = self.free.range(number..).next().map(|(end, start)| (*end, *start)) else {
            return false;
        };
        if start > number {
            return false;
        }
        self.free.remove_mut(&end);
        if start < number {
            self.free.insert_mut(number - 1, start);
        }
        if number < end {
            self.free.insert_mut(end, number + 1);
        }
        true
    }

    /// Gives a number back; false if it isn't taken.
    pub fn release(&mut self, number: u128) -> bool {
        if !self.contains(number) || self.is_free(number) {
            return false;
        }
        let mut start = number;
        let mut end = number;
        if let Some(left) = number.checked_sub(1).and_then(|before| self.free.get(&before).copied()) {
            self.free.remove_mut(&(number - 1));
            start = left;
        }
        let right = number.checked_add(1).and_then(|after| self.free.range(after..).next());
        if let Some((right, _)) = right.map(|(end, start)| (*end, *start)).filter(|(_, start)| *start == number + 1) {
            self.free.remove_mut(&right);
            end = right;
        }
        self.free.insert_mut(end, start);
        true
    }

    /// The free number that a dynamic request gets: the next one from a place that `seed` picks in the dynamic band,
    /// around its end; then the same in the static band. `None`: the pool is full.
    #[must_use]
    pub fn next(&self, seed: u64) -> Option<u128> {
        if self.first > self.last {
            return None;
        }
        let upper = self.next_within(self.dynamic, self.last, seed);
        upper.or_else(|| {
            (self.first < self.dynamic).then(|| self.next_within(self.first, self.dynamic - 1, seed)).flatten()
        })
    }

    /// Taken numbers.
    #[must_use]
    pub fn taken(&self) -> u128 {
        if self.first > self.last {
            return 0;
        }
        let free = self.free.iter().map(|(end, start)| end - start + 1).sum::<u128>();
        self.last - self.first + 1 - free
    }

    fn next_within(&self, low: u128, high: u128, seed: u64) -> Option<u128> {
        let hint = low + u128::from(seed) % (high - low + 1);
        let found = self.free_from(hint).filter(|number| *number <= high);
        found.or_else(|| self.free_from(low).filter(|number| *number < hint))
    }

    /// The smallest free number at or above one.
    fn free_from(&self, number: u128) -> Option<u128> {
        self.free.range(number..).next().map(|(_, start)| number.max(*start))
    }
}

/// The ClusterIP range of a cluster: one CIDR of one family. The network address, and IPv4's broadcast address, are
/// never handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    net: Option<IpNet>,
    pool: Pool,
}

/// Why an explicit address can't be had; the texts are Kubernetes'.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another service has it.
    #[error("provided IP is already allocated")]
    Taken,
    /// It isn't the cluster's to give.
    #[error("the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}")]
    OutOfRange {
        /// What was asked for.
        address: String,
        /// The service CIDR.
        range: String,
    },
}

impl Addresses {
    /// No range: nothing can be allocated.
    #[must_use]
    pub fn empty() -> Self {
        Self { net: None, pool: Pool::empty() }
    }

    /// Every usable address of a CIDR.
    #[must_use]
    pub fn of_cidr(net: IpNet) -> Self {
        let net = net.trunc();
        let (base, top) = (number(net.network()), number(net.broadcast()));
        let last = if net.addr().is_ipv4() { top.saturating_sub(1) } else { top };
        let size = (top - base).saturating_add(1);
        let pool = if base == top { Pool::empty() } else { Pool::new(base + 1, last, address_band(size)) };
        Self { net: Some(net), pool }
    }

    /// `IPv4` or `IPv6`, as Kubernetes calls a family.
    #[must_use]
    pub fn family(&self) -> &'static str {
        if self.net.is_some_and(|net| net.addr().is_ipv6()) { "IPv6" } else { "IPv4" }
    }

    /// The CIDR as text.
    #[must_use]
    pub fn range(&self) -> String {
        self.net.map(|net| net.to_string()).unwrap_or_default()
    }

    /// May this address be taken?
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let ours = self.net.is_some_and(|net| net.contains(&address)) && self.pool.contains(number(address));
        if !ours {
            return Err(Refused::OutOfRange { address: address.to_string(), range: self.range() });
        }
        if self.pool.is_free(number(address)) { Ok(()) } else { Err(Refused::Taken) }
    }

    /// Takes an address; false if it isn't free.
    pub fn take(&mut self, address: IpAddr) -> bool {
        self.check(address).is_ok() && self.pool.take(number(address))
    }

    /// Gives an address back; false if it wasn't taken.
    pub fn release(&mut self, address: IpAddr) -> bool {
        self.net.is_some_and(|net| net.contains(&address)) && self.pool.release(number(address))
    }

    /// The address that a dynamic request gets; `None`: the range is full.
    #[must_use]
    pub fn next(&self, seed: u64) -> Option<IpAddr> {
        let number = self.pool.next(seed)?;
        match self.net? {
            IpNet::V4(_) => u32::try_from(number).ok().map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
            IpNet::V6(_) => Some(IpAddr::V6(Ipv6Addr::from(number))),
        }
    }

    /// Taken addresses.
    #[must_use]
    pub fn taken(&self) -> u128 {
        self.pool.taken()
    }
}

/// Where a search starts: spreads requests over the range, the same on every server. FNV-1a of the request's own
/// identity: it needs to be even, not secret.
#[must_use]
pub fn seed(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // FNV's low bits follow the input's last byte too closely for a modulus.
    hash ^ (hash >> 32)
}

/// Static band of an address range (KEP-3070): `min(max(16, size/16), 256)`, none for 16 addresses or fewer.
#[must_use]
pub fn address_band(size: u128) -> u128 {
    if size <= 16 { 0 } else { (size / 16).clamp(16, 256) }
}

/// Static band of a port range (KEP-3668): `min(max(16, size/32), 128)`, none for 16 ports or fewer.
#[must_use]
pub fn port_band(size: u128) -> u128 {
    if size <= 16 { 0 } else { (size / 32).clamp(16, 128) }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn bands_are_kubernetes() {
        for (size, band) in [
            (1_u128, 0),
            (8, 0),
            (16, 0),
            (32, 16),
            (64, 16),
            (256, 16),
            (1024, 64),
            (65_536, 256),
            (1 << 20, 256),
            (u128::MAX, 256),
        ] {
            assert_eq!(address_band(size), band, "of {size} addresses");
        }
        for (size, band) in [(1_u128, 0), (16, 0), (17, 16), (512, 16), (2768, 86), (4096, 128), (65_535, 128)] {
            assert_eq!(port_band(size), band, "of {size} ports");
        }
    }

    #[test]
    fn every_prefix_length_gives_its_usable_addresses_once_the_dynamic_ones_first() {
        for length in 0..=32_u8 {
            every_address_once(&format!("10.96.0.0/{length}"), (32 - length, 2));
        }
        for length in (0..=128_u8).step_by(3).chain(120..=128) {
            every_address_once(&format!("fd00::/{length}"), (128 - length, 1));
        }
    }

    /// Takes up to 600 addresses of a range with `bits` host bits, `reserved` addresses of which are never given.
    fn every_address_once(cidr: &str, (bits, reserved): (u8, u128)) {
        let net: IpNet = cidr.parse().unwrap();
        let mut addresses = Addresses::of_cidr(net);
        let size = 1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX);
        let usable = size.saturating_sub(reserved);
        let (base, band) = (number(net.trunc().addr()), address_band(size));
        let mut seen = BTreeSet::new();
        for count in 0..usable.min(600) {
            let address = addresses.next(seed(&[cidr, &count.to_string()])).unwrap();
            assert!(addresses.take(address) && !addresses.take(address));
            assert!(net.contains(&address) && address != net.network(), "{address} of {cidr}");
            assert!(address.is_ipv6() || address != net.broadcast(), "{address} of {cidr}");
            assert!(seen.insert(address));
            let offset = number(address) - base;
            assert_eq!(offset > band, count < usable - band.min(usable), "{cidr}: {offset} came as number {count}");
        }
        assert_eq!(addresses.next(1).is_none(), usable <= 600, "{cidr}");
        assert_eq!(addresses.taken(), usable.min(600));
        for address in seen {
            assert!(addresses.release(address) && !addresses.release(address));
        }
        assert_eq!(addresses, Addresses::of_cidr(net), "{cidr}");
    }

    #[test]
    fn what_is_not_the_clusters_is_refused() {
        let addresses = Addresses::of_cidr("10.96.0.0/28".parse().unwrap());
        for (address, ours) in [
            ("10.96.0.0", false),
            ("10.96.0.1", true),
            ("10.96.0.14", true),
            ("10.96.0.15", false),
            ("10.96.0.16", false),
            ("::1", false),
        ] {
            assert_eq!(addresses.check(address.parse().unwrap()).is_ok(), ours, "{address}");
        }
        assert!(Addresses::empty().next(7).is_none());
        assert!(!Addresses::empty().clone().release("10.96.0.1".parse().unwrap()));
    }

    #[test]
    fn seeds_spread_over_the_range() {
        let mut first = BTreeSet::new();
        let addresses = Addresses::of_cidr("10.96.0.0/20".parse().unwrap());
        for index in 0..200 {
            first.insert(addresses.next(seed(&["0b4d-uid", &index.to_string()])));
        }
        assert!(first.len() > 180, "only {} different starts of 200", first.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Against a plain set.
        #[test]
        fn a_pool_is_a_set(first in 0_u16..40, size in 1_u16..60, steps in prop::collection::vec((any::<bool>(), 0_u16..110), 0..120)) {
            let mut pool = Pool::of_ports(first, first + size - 1);
            let range = u128::from(first)..u128::from(first + size);
            let mut taken = BTreeSet::new();
            for (take, number) in steps {
                let number = u128::from(number);
                if take {
                    prop_assert_eq!(pool.take(number), range.contains(&number) && taken.insert(number));
                } else {
                    prop_assert_eq!(pool.release(number), taken.remove(&number));
                }
                prop_assert_eq!(pool.taken(), taken.len() as u128);
                for number in 0..110 {
                    prop_assert_eq!(pool.is_free(number), range.contains(&number) && !taken.contains(&number));
                }
                let next = pool.next(number as u64 * 31);
                prop_assert_eq!(next.is_some(), taken.len() < usize::from(size));
                prop_assert!(next.is_none_or(|next| pool.is_free(next)));
            }
        }
    }
}
