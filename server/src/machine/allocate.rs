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
        upper.or_else(|| (self.first < self.dynamic).then(|| self.next_within(self.first, self.dynamic - 1, seed)).flatten())
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
