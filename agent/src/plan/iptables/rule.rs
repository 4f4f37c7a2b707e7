//! One rule of the packet filter, as far as our rules go. A rule from elsewhere that says more doesn't parse into this.
//!
//! Rendered as `iptables-save` prints it, so that what we write, what we read and what a user sees is one text.
//! INVARIANT: a rendered rule is one line; free text reaches it only through [`comment`], which keeps it harmless.

use crate::plan::service::Protocol;
use ipnet::IpNet;
use std::fmt;
use std::net::SocketAddr;

/// Bit of the packet mark that asks for masquerading; kube-proxy's.
pub const MASQUERADE_MARK: u32 = 0x4000;
/// Longest comment that the kernel keeps.
const COMMENT_BYTES: usize = 255;

/// An address match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Net {
    /// Matches everything but the network.
    pub negated: bool,
    /// The network.
    pub net: IpNet,
}

/// Connection states, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct States {
    /// First packet.
    pub new: bool,
    /// Of a known connection.
    pub established: bool,
    /// Belongs to a known one.
    pub related: bool,
    /// Fits none.
    pub invalid: bool,
}

/// Client affinity by xt_recent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recent {
    /// Remember the source in the list.
    Set(String),
    /// Match a source remembered at most so many seconds ago.
    Check(String, u32),
}

/// Where a rule sends a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Nowhere: the rule only counts, or comments.
    #[default]
    None,
    /// Another chain.
    Jump(String),
    /// Let through.
    Accept,
    /// Lose silently.
    Drop,
    /// Refuse with ICMP port unreachable.
    Reject,
    /// Refuse with a TCP reset: ICMP is rationed, and Linux's IPv6 has a second SYN confirm it.
    Reset,
    /// Back to the calling chain.
    Return,
    /// `mark = (mark & !mask) ^ value`.
    Mark {
        /// Value.
        value: u32,
        /// Mask.
        mask: u32,
    },
    /// Source becomes this node, with a random port.
    Masquerade,
    /// Destination becomes the endpoint.
    Dnat(SocketAddr),
}

/// A rule: all matches must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Source address.
    pub source: Option<Net>,
    /// Destination address.
    pub destination: Option<Net>,
    /// Transport protocol.
    pub protocol: Option<Protocol>,
    /// Connection state.
    pub states: Option<States>,
    /// Free text for humans.
    pub comment: Option<String>,
    /// Packet mark: value/mask, and whether negated.
    pub mark: Option<(u32, u32, bool)>,
    /// The source is an address of this node.
    pub source_local: bool,
    /// The destination is an address of this node.
    pub destination_local: bool,
    /// Holds with this probability, in 2^-31.
    pub probability: Option<u32>,
    /// Client affinity.
    pub recent: Option<Recent>,
    /// Destination port; needs a protocol.
    pub destination_port: Option<u16>,
    /// Target.
    pub target: Target,
}

/// 1/n in the kernel's unit, by way of kube-proxy's text (`%0.10f`), so that both round alike.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0..=1 times 2^31"
)]
pub fn share(part: u64, whole: u64) -> u32 {
    let text = format!("{:.10}", part as f64 / (whole.max(1) as f64));
    parse_probability(&text).unwrap_or(1 << 31)
}

/// A probability in the kernel's unit.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within 0..=1")]
pub fn parse_probability(text: &str) -> Option<u32> {
    let value: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&value).then(|| (value * f64::from(1_u32 << 31)).round() as u32)
}

/// kube-proxy's text (`%0.10f` of 1/n) if the number came from it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2^31")]
fn probability_text(probability: u32) -> String {
    let value = f64::from(probability) / f64::from(1_u32 << 31);
    let n = (1.0 / value).round();
    if n.is_finite() && share(1, n as u64) == probability { format!("{:.10}", 1.0 / n) } else { format!("{value:.11}") }
}

/// Text fit for a comment: anything that could end the line or the quotes becomes `_`.
#[must_use]
pub fn comment(text: &str) -> Option<String> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:>;,[] ".contains(c);
    Some(text.chars().map(|c| if harmless(c) { c } else { '_' }).take(COMMENT_BYTES).collect())
}

impl Rule {
    /// A rule with a comment.
    #[must_use]
    pub fn commented(text: &str) -> Self {
        Self { comment: comment(text), ..Self::default() }
    }

    /// With a target.
    #[must_use]
    pub fn to(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Jumping to a chain.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.to(Target::Jump(chain.to_owned()))
    }

    /// The chain it jumps to.
    #[must_use]
    pub fn jumps_to(&self) -> Option<&str> {
        match &self.target {
            Target::Jump(chain) => Some(chain),
            _ => None,
        }
    }
}

impl fmt::Display for Rule {
    /// Everything behind `-A CHAIN `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::with_capacity(12);
        for (flag, net) in [("-s", &self.source), ("-d", &self.destination)] {
            if let Some(Net { negated, net }) = net {
                words.push(format!("{}{flag} {}", if *negated { "! " } else { "" }, net));
            }
        }
        if let Some(protocol) = self.protocol {
            words.push(format!("-p {}", protocol.name()));
        }
        if let Some(states) = self.states {
            words.push(format!("-m conntrack --ctstate {}", state_list(states)));
        }
        if let Some(text) = &self.comment {
            words.push(format!("-m comment --comment {}", quoted(text)));
        }
        if let Some((value, mask, negated)) = self.mark {
            words.push(format!("-m mark {}--mark {value:#x}/{mask:#x}", if negated { "! " } else { "" }));
        }
        for (local, flag) in [(self.source_local, "--src-type"), (self.destination_local, "--dst-type")] {
            if local {
                words.push(format!("-m addrtype {flag} LOCAL"));
            }
        }
        if let Some(probability) = self.probability {
            words.push(format!("-m statistic --mode random --probability {}", probability_text(probability)));
        }
        match &self.recent {
            Some(Recent::Set(list)) => words.push(format!("-m recent --set --name {list}")),
            Some(Recent::Check(list, seconds)) => {
                words.push(format!("-m recent --rcheck --seconds {seconds} --reap --name {list}"));
            }
            None => {}
        }
        if let Some(protocol) = self.protocol {
            words.push(format!("-m {}", protocol.name()));
            words.extend(self.destination_port.map(|port| format!("--dport {port}")));
        }
        words.extend(target_words(self));
        f.write_str(&words.join(" "))
    }
}

fn target_words(rule: &Rule) -> Option<String> {
    let v6 = |net: &Option<Net>| net.is_some_and(|net| net.net.addr().is_ipv6());
    Some(match &rule.target {
        Target::None => return None,
        Target::Jump(chain) => format!("-j {chain}"),
        Target::Accept => "-j ACCEPT".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::Reject if v6(&rule.destination) => "-j REJECT --reject-with icmp6-port-unreachable".to_owned(),
        // Without an address both families' default is port unreachable.
        Target::Reject if rule.destination.is_none() => "-j REJECT".to_owned(),
        Target::Reject => "-j REJECT --reject-with icmp-port-unreachable".to_owned(),
        Target::Reset => "-j REJECT --reject-with tcp-reset".to_owned(),
        Target::Return => "-j RETURN".to_owned(),
        Target::Mark { value, mask } => format!("-j MARK --set-xmark {value:#x}/{mask:#x}"),
        Target::Masquerade => "-j MASQUERADE --random-fully".to_owned(),
        Target::Dnat(endpoint) => format!("-j DNAT --to-destination {endpoint}"),
    })
}

fn state_list(states: States) -> String {
    let all = [
        (states.invalid, "INVALID"),
        (states.new, "NEW"),
        (states.related, "RELATED"),
        (states.established, "ESTABLISHED"),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// As xtables_save_string does: bare if only letters, digits, `-` and `_`.
fn quoted(text: &str) -> String {
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare { text.to_owned() } else { format!("\"{text}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_kube_proxys_text() {
        for (n, text) in [(1, "1.0000000000"), (2, "0.5000000000"), (3, "0.3333333333"), (4, "0.2500000000")] {
            let rule = Rule { probability: Some(share(1, n)), ..Rule::default() };
            assert_eq!(rule.to_string(), format!("-m statistic --mode random --probability {text}"));
        }
        // What iptables-save prints for kube-proxy's 0.3333333333 is the same number.
        assert_eq!(parse_probability("0.33333333349"), Some(share(1, 3)));
    }

    #[test]
    fn a_comment_can_not_break_out_of_its_line() {
        let rule = Rule::commented("a\"\n-A INPUT -j DROP \\ $(x) 'é");
        assert_eq!(rule.to_string().lines().count(), 1);
        assert_eq!(rule.to_string().matches('"').count(), 2);
        assert_eq!(Rule::commented(&"x".repeat(999)).comment.unwrap().len(), 255);
    }
}
