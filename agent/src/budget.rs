//! How often something may be done that costs: a part of the time, and at once as long as time was saved.

use std::time::{Duration, Instant};

/// What may still be spent; it grows by the part of the time that may be spent.
#[derive(Debug)]
pub struct Budget {
    savings: Duration,
    share: u32,
    left: Duration,
    at: Instant,
}

impl Budget {
    /// One part in `share` of the time, and at once as much as was saved: at the beginning, and at most, `savings`.
    #[must_use]
    pub fn new(share: u32, savings: Duration, now: Instant) -> Self {
        Self { savings, share, left: savings, at: now }
    }

    /// Takes a cost from it; until when to rest. `rest` is how long where nothing is saved.
    pub fn spend(&mut self, cost: Duration, rest: Duration, now: Instant) -> Instant {
        self.left = self.savings.min(self.left + now.saturating_duration_since(self.at) / self.share);
        let rest = if cost <= self.left { Duration::ZERO } else { rest };
        self.left = self.left.saturating_sub(cost);
        // A rest pays for its cost: nothing is saved by it.
        self.at = now + rest;
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_spent_at_once_and_no_more_than_the_share() {
        let begun = Instant::now();
        let cost = Duration::from_millis(10);
        let mut budget = Budget::new(50, Duration::from_millis(200), begun);
        let mut now = begun;
        let mut times = 0;
        while now < begun + Duration::from_secs(100) {
            now = budget.spend(cost, cost * 50, now + cost);
            times += 1;
        }
        // 2 % of 100 s, and what had been saved.
        assert!((205..=225).contains(&times), "{times}");
        let later = now + Duration::from_secs(10);
        assert_eq!(budget.spend(cost, cost * 50, later), later, "saved again");
    }

    #[test]
    fn one_that_costs_more_than_was_saved_is_followed_by_a_rest() {
        let begun = Instant::now();
        let mut budget = Budget::new(10, Duration::from_secs(2), begun);
        let slow = Duration::from_millis(800);
        assert_eq!(budget.spend(slow, slow * 10, begun), begun);
        assert_eq!(budget.spend(slow, slow * 10, begun), begun);
        assert_eq!(budget.spend(slow, slow * 10, begun), begun + slow * 10);
    }
}
