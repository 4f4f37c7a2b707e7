//! A pool: the endpoints behind frontends, one to a slot; the kernel draws a slot.
//!
//! Law: [`evolve`] keeps every endpoint that stays in its slot and writes as few slots as it can, so that an endpoint that
//! is replaced costs one slot however many there are.

use crate::plan::service::Backend;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Endpoints, one to a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its number, unique in its table and not used again soon.
    pub id: u32,
    /// The endpoints; one with a greater weight has several.
    pub slots: Vec<SocketAddr>,
}

/// Slots of a pool of unequal weights at most; finer shares are rounded, each endpoint keeps one at least.
pub const MOST_SHARES: u32 = 2_048;

/// Each endpoint as often as its weight says.
#[must_use]
pub fn shares(endpoints: &[Backend]) -> Vec<SocketAddr> {
    let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    let most = u64::from(MOST_SHARES).max(endpoints.len() as u64);
    let count = |weight: u32| {
        let weight = u64::from(weight);
        let count = if total > most { (weight * most + total / 2) / total } else { weight };
        usize::try_from(count.max(1)).unwrap_or(1)
    };
    endpoints.iter().flat_map(|endpoint| std::iter::repeat_n(endpoint.address, count(endpoint.weight))).collect()
}

/// Slots of a Maglev table: a prime, and IPVS' own size, however many endpoints there are.
pub const MAGLEV_SLOTS: u32 = 4_093;

/// The lookup table of Maglev hashing (Eisenbud et al., NSDI 2016, 3.4), the same on every node: each endpoint fills slots
/// in an order of its own, as many in a round as its weight says, and an endpoint that comes or goes moves few others.
#[must_use]
pub fn maglev(endpoints: &[Backend]) -> Vec<SocketAddr> {
    let size = u64::from(MAGLEV_SLOTS);
    let mut table: Vec<Option<SocketAddr>> = vec![None; MAGLEV_SLOTS as usize];
    let mut left = table.len();
    let greatest = endpoints.iter().map(|endpoint| endpoint.weight).max().unwrap_or_default();
    // Beyond the size of the table a round could fill it alone.
    let scale = greatest.div_ceil(MAGLEV_SLOTS / 16).max(1);
    let mut orders: Vec<Order> = endpoints.iter().map(|endpoint| Order::of(endpoint.address)).collect();
    while left > 0 && !endpoints.is_empty() {
        for (endpoint, order) in endpoints.iter().zip(&mut orders) {
            for _ in 0..(endpoint.weight / scale).max(1) {
                let empty = (0..size).map(|_| order.next(size)).find(|slot| table[*slot].is_none());
                let Some(slot) = empty.filter(|_| left > 0) else {
                    break;
                };
                table[slot] = Some(endpoint.address);
                left -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The order in which an endpoint fills slots: all of them, since the table's size is prime.
struct Order {
    offset: u64,
    skip: u64,
}

impl Order {
    fn of(endpoint: SocketAddr) -> Self {
        let text = endpoint.to_string();
        let hash = |seed| fnv(seed, text.as_bytes());
        Self { offset: hash(1) % u64::from(MAGLEV_SLOTS), skip: hash(2) % u64::from(MAGLEV_SLOTS - 1) + 1 }
    }

    fn next(&mut self, size: u64) -> usize {
        let slot = self.offset;
        self.offset = (slot + self.skip) % size;
        usize::try_from(slot).unwrap_or_default()
    }
}

/// FNV-1a with a final mix: cheap, and the same on every machine.
fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// The slots of new endpoints, as close to the old slots as can be.
#[must_use]
pub fn evolve(old: &[SocketAddr], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut missing: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for endpoint in wanted {
        *missing.entry(*endpoint).or_default() += 1;
    }
    let mut slots: Vec<Option<SocketAddr>> = Vec::with_capacity(wanted.len().max(old.len()));
    for endpoint in old {
        let stays = missing.get_mut(endpoint).filter(|left| **left > 0);
        slots.push(stays.map(|left| {
            *left -= 1;
            *endpoint
        }));
    }
    let mut new = missing.into_iter().flat_map(|(endpoint, left)| std::iter::repeat_n(endpoint, left));
    for slot in &mut slots {
        if slot.is_none() {
            *slot = new.next();
        }
    }
    slots.extend(new.map(Some));
    // What is still empty is filled from the end.
    let mut filled = Vec::with_capacity(wanted.len());
    while let Some(slot) = slots.get(filled.len()).copied() {
        match slot {
            Some(endpoint) => filled.push(endpoint),
            None => filled.extend(slots.pop().flatten()),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoints(list: &[u8]) -> Vec<SocketAddr> {
        list.iter().map(|n| SocketAddr::from(([10, 244, 0, *n], 80))).collect()
    }

    #[test]
    fn a_replaced_endpoint_takes_its_slot() {
        assert_eq!(evolve(&endpoints(&[1, 2, 3]), &endpoints(&[1, 3, 4])), endpoints(&[1, 4, 3]));
        assert_eq!(evolve(&endpoints(&[1, 2, 3]), &endpoints(&[2, 3])), endpoints(&[3, 2]));
        assert_eq!(evolve(&endpoints(&[1, 2, 3]), &endpoints(&[1, 2])), endpoints(&[1, 2]));
        assert_eq!(evolve(&endpoints(&[1, 2, 3]), &[]), []);
        assert_eq!(evolve(&[], &endpoints(&[1, 1, 2])), endpoints(&[1, 1, 2]));
    }

    #[test]
    fn shares_are_weights_and_bounded() {
        assert_eq!(shares(&backends(&[1, 1])), endpoints(&[0, 1]));
        assert_eq!(shares(&backends(&[1, 3])), endpoints(&[0, 1, 1, 1]));
        assert_eq!(shares(&[]), []);
        let count = |slots: &[SocketAddr], n: u8| slots.iter().filter(|one| **one == endpoints(&[n])[0]).count();
        let rounded = shares(&backends(&[1, 999_983, 500_000]));
        assert!(rounded.len() <= 2_050, "{}", rounded.len());
        assert_eq!(count(&rounded, 0), 1, "the least keeps one");
        assert!((1_360..1_370).contains(&count(&rounded, 1)), "{}", count(&rounded, 1));
    }

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let address = |n| SocketAddr::from(([10, 244, 0, n], 80));
        (0..).zip(weights).map(|(n, weight)| Backend { address: address(n), weight: *weight }).collect()
    }

    #[test]
    fn a_maglev_table_is_full_fair_and_moves_few() {
        assert_eq!(maglev(&[]), []);
        let ten = maglev(&backends(&[1; 10]));
        assert_eq!(ten.len(), 4_093);
        let count = |table: &[SocketAddr], n: usize| {
            let address = backends(&[1; 10])[n].address;
            table.iter().filter(|one| **one == address).count()
        };
        for n in 0..10 {
            assert!((400..=420).contains(&count(&ten, n)), "{n}: {}", count(&ten, n));
        }
        let nine = maglev(&backends(&[1; 9]));
        let moved = ten.iter().zip(&nine).filter(|(old, new)| old != new).count();
        assert!((400..700).contains(&moved), "{moved} of 4093 moved when one of ten went");
        let heavy = maglev(&backends(&[3, 1]));
        assert!((3_060..3_080).contains(&count(&heavy, 0)), "{}", count(&heavy, 0));
        let extreme = maglev(&backends(&[1_000, 1]));
        assert!(count(&extreme, 1) >= 1 && count(&extreme, 1) < 40, "{}", count(&extreme, 1));
    }

    proptest! {
        #[test]
        fn slots_hold_what_is_wanted_and_few_are_written(
            old in proptest::collection::vec(0..12_u8, 0..12),
            wanted in proptest::collection::vec(0..12_u8, 0..12),
        ) {
            let (old, wanted) = (endpoints(&old), endpoints(&wanted));
            let slots = evolve(&old, &wanted);
            let sorted = |list: &[SocketAddr]| { let mut list = list.to_vec(); list.sort(); list };
            prop_assert_eq!(sorted(&slots), sorted(&wanted));
            let written = slots.iter().enumerate().filter(|(at, endpoint)| old.get(*at) != Some(endpoint)).count();
            let mut gone = sorted(&old);
            let mut new = 0;
            for endpoint in &wanted {
                match gone.iter().position(|one| one == endpoint) {
                    Some(at) => { gone.remove(at); }
                    None => new += 1,
                }
            }
            prop_assert!(written <= new + gone.len(), "{written} slots for {new} new and {} gone", gone.len());
            prop_assert_eq!(evolve(&slots, &wanted), slots);
        }
    }
}
