//! Join tokens: `fl1.<SHA-256 of the CA's certificate>.<id>.<secret>`, hex. Pure.
//!
//! Whoever joins checks the CA by the first part before it sends the second. The cluster keeps the id and a hash of the
//! secret: nobody can read a token out of it.

use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "fl1";
/// Hex digits of an id.
pub const ID_DIGITS: usize = 10;
/// Hex digits of a secret: 128 bits.
pub const SECRET_DIGITS: usize = 32;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the DER certificate of the CA that the servers' certificates come from.
    pub ca_sha256: [u8; 32],
    /// Names it among the cluster's tokens; no secret.
    pub id: String,
    /// The secret.
    pub secret: String,
}

/// Why a text is no token. It never says the text: it may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: one looks like fl1.<64 hex digits>.<{ID_DIGITS} hex digits>.<{SECRET_DIGITS} hex digits>, as `fairlead token create` prints it"
)]
pub struct NoToken;

impl JoinToken {
    /// Hash of a secret, as the cluster keeps it. The secret has 128 random bits: no salt or stretching is needed.
    #[must_use]
    pub fn hash(id: &str, secret: &str) -> [u8; 32] {
        Sha256::digest(format!("fairlead join token {id}.{secret}")).into()
    }

    /// Whether a secret has this hash, in a time that doesn't depend on where they differ.
    #[must_use]
    pub fn matches(id: &str, secret: &str, hash: &[u8]) -> bool {
        let own = Self::hash(id, secret);
        own.len() == hash.len() && own.iter().zip(hash).fold(0, |sum, (one, other)| sum | (one ^ other)) == 0
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", hex(&self.ca_sha256), self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [PREFIX, hash, id, secret] = parts.as_slice() else {
            return Err(NoToken);
        };
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !is_hex(hash, 64) || !is_hex(id, ID_DIGITS) || !is_hex(secret, SECRET_DIGITS) {
            return Err(NoToken);
        }
        let mut ca_sha256 = [0; 32];
        for (at, byte) in ca_sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hash[at * 2..at * 2 + 2], 16).map_err(|_| NoToken)?;
        }
        Ok(Self { ca_sha256, id: (*id).to_owned(), secret: (*secret).to_owned() })
    }
}

/// Lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_says_and_hides_its_secret() {
        let token = JoinToken { ca_sha256: [0xab; 32], id: "0123456789".into(), secret: "0f".repeat(16) };
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0f0f"));
        let hash = JoinToken::hash(&token.id, &token.secret);
        assert!(JoinToken::matches(&token.id, &token.secret, &hash));
        assert!(!JoinToken::matches(&token.id, &"00".repeat(16), &hash));
        assert!(!JoinToken::matches("9876543210", &token.secret, &hash));
        assert!(!JoinToken::matches(&token.id, &token.secret, &[]));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let good = JoinToken { ca_sha256: [1; 32], id: "0123456789".into(), secret: "0f".repeat(16) }.to_string();
        let upper = good.to_uppercase();
        let longer = format!("{good}0");
        for wrong in ["", "fl1", "fl1...", "secret", &good[1..], &good[..good.len() - 1], &upper, &longer, "fl1.é.é.é"]
        {
            let refused = wrong.parse::<JoinToken>().unwrap_err().to_string();
            assert!(wrong.len() < 8 || !refused.contains(wrong), "{refused}");
        }
    }
}
