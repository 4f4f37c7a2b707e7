//! Virtual servers and their real servers, as IPVS has them.
//!
//! INVARIANT: a mark of ours lies in [`MARKS`], never has the bit that asks for masquerading, and fits `ipvsadm`, which
//! takes no more than 31 bits.

use crate::plan::Family;
use crate::plan::iptables::rule::MASQUERADE_MARK;
use crate::plan::service::{Backend, PortPlan, Protocol};
use fairlead_proto::model::annotations::Scheduler;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Packet marks that lead to virtual servers of ours.
pub const MARKS: Range<u32> = 0x7f00_0000..0x8000_0000;
/// So many of them can be in use.
pub const MOST_MARKS: u32 = (MARKS.end - MARKS.start) / 2;

/// The service is persistent.
pub const PERSISTENT: u32 = 1;
/// The scheduler takes the next real server for one of weight 0 (`mh-fallback`, `sh-fallback`).
const FALLBACK: u32 = 8;
/// Flags that are a service's own; the kernel sets others.
pub const FLAGS: u32 = 0x3d;

/// Stands for the weight of a real server that isn't reached by masquerading, so that it differs from every other.
pub const NOT_MASQUERADED: u32 = u32::MAX;

/// The mark of a number.
#[must_use]
pub fn mark(number: u32) -> u32 {
    let low = number & (MASQUERADE_MARK - 1);
    MARKS.start | (number & !(MASQUERADE_MARK - 1)) << 1 | low
}

/// The number of a mark, if it is one of ours.
#[must_use]
pub fn number(mark: u32) -> Option<u32> {
    let ours = MARKS.contains(&mark) && mark & MASQUERADE_MARK == 0;
    let rest = mark & !MARKS.start;
    ours.then_some(rest >> 1 & !(MASQUERADE_MARK - 1) | rest & (MASQUERADE_MARK - 1))
}

/// How a packet finds its virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Virtual {
    /// By where it goes.
    Address(Protocol, SocketAddr),
    /// By its mark.
    Mark(Family, u32),
}

impl Virtual {
    /// Of an address and a port.
    #[must_use]
    pub fn of((ip, protocol, port): (IpAddr, Protocol, u16)) -> Self {
        Self::Address(protocol, SocketAddr::new(ip, port))
    }

    /// As `ipvsadm` names it.
    #[must_use]
    pub fn option(&self) -> String {
        match self {
            Self::Address(Protocol::Tcp, address) => format!("-t {address}"),
            Self::Address(Protocol::Udp, address) => format!("-u {address}"),
            Self::Address(Protocol::Sctp, address) => format!("--sctp-service {address}"),
            Self::Mark(Family::V4, mark) => format!("-f {mark}"),
            Self::Mark(Family::V6, mark) => format!("-f {mark} -6"),
        }
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Address(_, address) => Family::of(address.ip()),
            Self::Mark(family, _) => *family,
        }
    }
}

impl fmt::Display for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(protocol, address) => write!(f, "{} {address}", protocol.name()),
            Self::Mark(Family::V4, mark) => write!(f, "mark {mark:#x}"),
            Self::Mark(Family::V6, mark) => write!(f, "mark {mark:#x} (IPv6)"),
        }
    }
}

/// How it chooses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Balance {
    /// Name of the kernel's scheduler.
    pub scheduler: Cow<'static, str>,
    /// The kernel's flags, those of [`FLAGS`].
    pub flags: u32,
    /// Seconds for which a client stays with its real server; 0: for this connection only.
    pub persistence: u32,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How it chooses.
    pub balance: Balance,
    /// Weights of its real servers; 0: nothing new.
    pub reals: BTreeMap<SocketAddr, u32>,
}

impl Server {
    /// For the endpoints of a port, and those that keep their connections. `None`: there are none.
    #[must_use]
    pub fn of(plan: &PortPlan, chosen: &[Backend]) -> Option<Self> {
        let mut reals: BTreeMap<SocketAddr, u32> = plan.kept.iter().map(|address| (*address, 0)).collect();
        reals.extend(chosen.iter().map(|backend| (backend.address, backend.weight)));
        (!reals.is_empty()).then(|| Self { balance: balance(plan, chosen), reals })
    }

    /// The same, found by mark. A persistent one doesn't translate ports then (`ip_vs_sched_persist` goes by the port of
    /// the virtual server, which has none): clients stay by a hash of their address.
    #[must_use]
    pub fn by_mark(mut self) -> Self {
        if self.balance.persistence > 0 {
            self.balance =
                Balance { scheduler: Cow::Borrowed(Scheduler::Maglev.name()), flags: FALLBACK, persistence: 0 };
        }
        self
    }
}

fn balance(plan: &PortPlan, chosen: &[Backend]) -> Balance {
    let equal = chosen.iter().all(|backend| backend.weight == 1);
    let scheduler = match plan.scheduler.unwrap_or(Scheduler::RoundRobin) {
        Scheduler::RoundRobin if !equal => Scheduler::WeightedRoundRobin,
        Scheduler::LeastConnection if !equal => Scheduler::WeightedLeastConnection,
        other => other,
    };
    let mut flags = if matches!(scheduler, Scheduler::Maglev | Scheduler::SourceHashing) { FALLBACK } else { 0 };
    let persistence = plan.affinity_seconds.unwrap_or_default();
    if persistence > 0 {
        flags |= PERSISTENT;
    }
    Balance { scheduler: Cow::Borrowed(scheduler.name()), flags, persistence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_numbers_without_the_masquerade_bit() {
        for one in [0, 1, 0x3fff, 0x4000, 0x4001, 0xabcd, MOST_MARKS - 1] {
            let mark = mark(one);
            assert!(MARKS.contains(&mark) && mark & MASQUERADE_MARK == 0, "{mark:#x}");
            assert_eq!(number(mark), Some(one));
        }
        for foreign in [0, 1, MASQUERADE_MARK, MARKS.start | MASQUERADE_MARK, MARKS.end] {
            assert_eq!(number(foreign), None, "{foreign:#x}");
        }
    }
}
