//! A digest of a set that costs O(change): the lane-wise sum of its members' SHA-256. Two equal sets have equal
//! digests whatever the order of insertion. It finds accidents (a lost delta, a diverged replica), not forgery.

use sha2::{Digest as _, Sha256};

/// Sum of the hashes of a set's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetDigest([u64; 4]);

impl SetDigest {
    /// Adds a member. `tag` keeps members of different families apart.
    pub fn add(&mut self, tag: u8, encoded: &[u8]) {
        for (lane, word) in self.0.iter_mut().zip(hash(tag, encoded)) {
            *lane = lane.wrapping_add(word);
        }
    }

    /// Removes a member that was added before.
    pub fn remove(&mut self, tag: u8, encoded: &[u8]) {
        for (lane, word) in self.0.iter_mut().zip(hash(tag, encoded)) {
            *lane = lane.wrapping_sub(word);
        }
    }

    /// Adds all members of another set.
    pub fn add_all(&mut self, other: Self) {
        for (lane, word) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(word);
        }
    }

    /// The digest as 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes()).collect()
    }

    /// The digest as 64 hex digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.0.iter().map(|lane| format!("{lane:016x}")).collect()
    }
}

fn hash(tag: u8, encoded: &[u8]) -> [u64; 4] {
    let mut hasher = Sha256::new();
    hasher.update([tag]);
    hasher.update(encoded);
    let sum = hasher.finalize();
    let mut lanes = [0; 4];
    for (lane, bytes) in lanes.iter_mut().zip(sum.chunks_exact(8)) {
        *lane = bytes.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    }
    lanes
}
