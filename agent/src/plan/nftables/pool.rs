//! A pool: the endpoints behind frontends, one to a slot; the kernel draws a slot.
//!
//! Law: [`evolve`] keeps every endpoint that stays in its slot and writes as few slots as it can, so that an endpoint that
//! is replaced costs one slot however many there are.

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
