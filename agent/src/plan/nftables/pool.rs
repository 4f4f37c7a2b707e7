//! A pool: the endpoints behind frontends, one to a slot; the kernel draws a slot.
//!
//! Law: [`evolve`] keeps every endpoint that stays in its slot and writes as few slots as it can, so that an endpoint that
//! is replaced costs one slot however many there are.

use crate::plan::service::Backend;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Endpoints, one to a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    fn weighted(list: &[u32]) -> Vec<SocketAddr> {
        let backends: Vec<Backend> = (0..)
            .zip(list)
            .map(|(n, weight)| Backend { address: SocketAddr::from(([10, 244, 0, n], 80)), weight: *weight })
            .collect();
        shares(&backends)
    }

    #[test]
    fn shares_are_weights_and_bounded() {
        assert_eq!(weighted(&[1, 1]), endpoints(&[0, 1]));
        assert_eq!(weighted(&[1, 3]), endpoints(&[0, 1, 1, 1]));
        assert_eq!(weighted(&[]), []);
        let count = |slots: &[SocketAddr], n: u8| slots.iter().filter(|one| **one == endpoints(&[n])[0]).count();
        let rounded = weighted(&[1, 999_983, 500_000]);
        assert!(rounded.len() <= 2_050, "{}", rounded.len());
        assert_eq!(count(&rounded, 0), 1, "the least keeps one");
        assert!((1_360..1_370).contains(&count(&rounded, 1)), "{}", count(&rounded, 1));
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
