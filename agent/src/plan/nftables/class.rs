//! Classes of pools: how an endpoint is drawn. Each has a number, which a pool's word carries, and a chain.
//!
//! INVARIANT: a number means one class for as long as some pool may carry it; a chain is made before a pool of its class.

use crate::plan::nftables::set::MOST_CLASSES;
use crate::plan::service::Protocol;
use std::collections::BTreeMap;

/// How an endpoint is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Protocol of the pool.
    pub protocol: Protocol,
    /// Slots to draw from.
    pub slots: u32,
    /// The slot is a hash of the source, not drawn.
    pub maglev: bool,
    /// Seconds for which a client stays with its endpoint, if it does.
    pub affinity: Option<u32>,
}

impl Class {
    /// Name of its chain.
    #[must_use]
    pub fn chain(self) -> String {
        let hashed = if self.maglev { "-maglev" } else { "" };
        let plain = format!("pick-{}-{}{hashed}", self.protocol.name(), self.slots);
        match self.affinity {
            None => plain,
            Some(seconds) => format!("{plain}-sticky-{seconds}"),
        }
    }

    /// By the name of its chain.
    #[must_use]
    pub fn named(chain: &str) -> Option<Self> {
        let (protocol, rest) = chain.strip_prefix("pick-")?.split_once('-')?;
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|one| one.name() == protocol)?;
        let (slots, affinity) = match rest.split_once("-sticky-") {
            Some((slots, seconds)) => (slots, Some(seconds.parse().ok()?)),
            None => (rest, None),
        };
        let (slots, maglev) = match slots.strip_suffix("-maglev") {
            Some(slots) => (slots, true),
            None => (slots, false),
        };
        Some(Self { protocol, slots: slots.parse().ok().filter(|slots| *slots > 0)?, maglev, affinity })
    }
}

/// Classes and their numbers, of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes(BTreeMap<Class, u16>);

impl Classes {
    /// A class's number.
    #[must_use]
    pub fn number(&self, class: Class) -> Option<u16> {
        self.0.get(&class).copied()
    }

    /// Every class.
    pub fn iter(&self) -> impl Iterator<Item = (Class, u16)> {
        self.0.iter().map(|(class, number)| (*class, *number))
    }

    /// Numbers a class if it has no number. True if it had none.
    pub fn add(&mut self, class: Class) -> bool {
        if self.0.contains_key(&class) {
            return false;
        }
        let used: std::collections::BTreeSet<u16> = self.0.values().copied().collect();
        let Some(free) = (1..=MOST_CLASSES).find(|number| !used.contains(number)) else {
            return false;
        };
        self.0.insert(class, free);
        true
    }

    /// Numbers a class as the kernel does; `false` if either is taken.
    pub fn adopt(&mut self, class: Class, number: u16) -> bool {
        let free = number != 0 && !self.0.contains_key(&class) && !self.0.values().any(|one| *one == number);
        if free {
            self.0.insert(class, number);
        }
        free
    }

    /// Forgets a class that no pool has.
    pub fn remove(&mut self, class: Class) {
        self.0.remove(&class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(slots: u32) -> Class {
        Class { protocol: Protocol::Tcp, slots, maglev: false, affinity: None }
    }

    #[test]
    fn a_class_is_found_by_its_chain() {
        let plain = class(3);
        let maglev = Class { slots: 4_093, maglev: true, ..plain };
        let sticky = Class { affinity: Some(10_800), ..maglev };
        for class in [plain, maglev, sticky, Class { slots: 1_000, affinity: Some(10_800), ..plain }] {
            assert_eq!(Class::named(&class.chain()), Some(class));
        }
        for other in ["pick-", "pick-tcp-0", "pick-udp-3-sticky-", "services", "pick-sctp-x", "pick-3"] {
            assert_eq!(Class::named(other), None);
        }
    }

    #[test]
    fn numbers_are_not_shared() {
        let mut classes = Classes::default();
        assert!(classes.adopt(class(2), 1));
        assert!(!classes.adopt(class(3), 1));
        assert!(classes.add(class(3)));
        assert!(!classes.add(class(3)));
        assert_eq!(classes.number(class(3)), Some(2));
    }
}
