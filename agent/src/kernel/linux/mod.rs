//! The kernel of the host, or of a network namespace: the programs that read and change it.

mod conntrack;
mod iptables;
mod ipvs;
mod nftables;
mod program;
mod wire;

pub use iptables::{Flavor, Iptables};
pub use ipvs::{Connection, Finding, Ipvs, preflight};
pub use nftables::Nftables;
pub use program::{in_namespace, is_switched_on};
