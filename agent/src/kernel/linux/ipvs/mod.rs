//! IPVS of the host or of a network namespace, and what belongs to it: ipsets, local routes and a few rules of iptables.
//!
//! All but the fixed rules goes over netlink, from the process. IPVS tells nobody of changes, so drift is found by reading.

mod routes;
mod rules;
mod servers;
mod sets;
mod settings;

pub use settings::{Finding, preflight};

use crate::kernel::linux::conntrack::Forgetter;
use crate::kernel::linux::program;
use crate::kernel::linux::wire::{Request, Wire};
use crate::kernel::{Kernel, KernelError};
use crate::plan::ipvs::diff::{cleanup, idle};
use crate::plan::ipvs::{DEVICE, IpvsPlane, Objects, Op, Set, Tables, Virtual};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use rules::{ByFamily, Rules};
pub use servers::Connection;
use servers::Listed;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time between two readings, if they don't take long.
const READ_EVERY: Duration = Duration::from_secs(1);
/// A set that a rule looked into until just now may count as in use a little longer.
const DESTROY_TRIES: u32 = 20;

/// IPVS.
pub struct Ipvs {
    namespace: Option<PathBuf>,
    sockets: Mutex<Option<Sockets>>,
    rules: Arc<Rules>,
    forgetter: Forgetter,
}

struct Sockets {
    generic: Wire,
    /// The number of IPVS there.
    family: u16,
    netfilter: Wire,
    route: Wire,
}

/// What carries an op.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Channel {
    Servers,
    Sets,
    Routes,
    Rules,
    None,
}

fn channel(op: &Op) -> Channel {
    match op {
        Op::Add { .. } | Op::Edit { .. } | Op::Delete { .. } | Op::Real { .. } | Op::Unreal { .. } => Channel::Servers,
        Op::Create { .. } | Op::Put { .. } | Op::Remove { .. } | Op::Destroy { .. } => Channel::Sets,
        Op::Device | Op::DropDevice | Op::Route { .. } | Op::Unroute { .. } => Channel::Routes,
        Op::Chain { .. } | Op::Jump { .. } | Op::Unjump { .. } | Op::DropChain { .. } => Channel::Rules,
        Op::Forget(_) | Op::Foreign { .. } => Channel::None,
    }
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let mut generic = Wire::open(NETLINK_GENERIC)?;
        let family = servers::family(&mut generic)?;
        let route = Wire::open(NETLINK_ROUTE)?;
        route.filter_dumps()?;
        Ok(Self { generic, family, netfilter: Wire::open(NETLINK_NETFILTER)?, route })
    }
}

impl Ipvs {
    /// Of a network namespace, by its file; `None` = the process's.
    #[must_use]
    pub fn new(namespace: Option<PathBuf>) -> Self {
        let rules = Arc::new(Rules::new(namespace.clone()));
        Self { rules, namespace, sockets: Mutex::default(), forgetter: Forgetter::default() }
    }

    /// Whether this host's kernel has what is needed; nothing is changed, but modules may be loaded.
    ///
    /// # Errors
    /// [`KernelError`]: what is missing.
    pub fn check(&self) -> Result<(), KernelError> {
        let sets = self.netlink("listing sets", |sockets| Ok(sets::names(&mut sockets.netfilter)))?;
        if let Err(source) = sets {
            return Err(match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINVAL | Errno::EOPNOTSUPP) => KernelError::Lacks("ipsets (module ip_set)"),
                _ => KernelError::Netlink { what: "listing sets".to_owned(), source },
            });
        }
        self.rules.fresh().map(|_| ())
    }

    /// Makes the kernel's settings what IPVS needs, and says what can't be had.
    ///
    /// # Errors
    /// [`KernelError`] if that can't even be tried.
    pub fn prepare(&self) -> Result<(), KernelError> {
        self.check()?;
        for finding in settings::apply(self.namespace.as_deref())? {
            tracing::warn!("{finding}");
        }
        Ok(())
    }

    /// Removes what is ours and nothing else.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read or removed.
    pub fn clean(&self) -> Result<(), KernelError> {
        let ops = cleanup(&self.observe()?);
        if ops.is_empty() { Ok(()) } else { self.execute(&ops) }
    }

    /// The addresses that a node has: not those of its loopback, of one link only, or of our device.
    ///
    /// # Errors
    /// [`KernelError`] if they can't be read.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, KernelError> {
        let failed = |source: io::Error| KernelError::Netlink { what: "listing addresses".to_owned(), source };
        let read = program::in_namespace(self.namespace.as_deref(), || {
            Ok::<Vec<_>, Errno>(getifaddrs()?.filter(|one| one.interface_name != DEVICE).collect())
        })?;
        let sockets = read.map_err(|errno| failed(errno.into()))?.into_iter().filter_map(|one| one.address);
        let addresses = sockets.filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        Ok(addresses.filter(is_reachable).collect())
    }

    /// True if something of ours is here, as far as names tell: a host without any of it needs no IPVS to say so.
    #[must_use]
    pub fn is_here(&self) -> bool {
        let seen = program::in_namespace(self.namespace.as_deref(), || {
            let mut route = Wire::open(NETLINK_ROUTE)?;
            let mut netfilter = Wire::open(NETLINK_NETFILTER)?;
            Ok::<bool, io::Error>(routes::device(&mut route)?.is_some() || !sets::names(&mut netfilter)?.is_empty())
        });
        matches!(seen, Ok(Ok(true)))
    }

    /// Connections that are established through IPVS.
    ///
    /// # Errors
    /// [`KernelError`] if they can't be read.
    pub fn connections(&self) -> Result<BTreeSet<Connection>, KernelError> {
        Ok(servers::established(&self.proc("ip_vs_conn")?))
    }

    /// Removes virtual servers but those that carry some of these connections, and all the rest once there is none: for a
    /// host that another mode serves. True: nothing is left. IPVS' own counts don't tell: answers that another mode carries
    /// stir old entries of the same ports.
    ///
    /// # Errors
    /// [`KernelError`] if it can't be read or removed.
    pub fn drain(&self, live: &BTreeSet<Connection>) -> Result<bool, KernelError> {
        let observed = self.observe()?;
        let ops = if live.is_empty() { cleanup(&observed) } else { idle(&observed, live.iter().map(|(_, to)| *to)) };
        if !ops.is_empty() {
            self.execute(&ops)?;
        }
        Ok(live.is_empty())
    }

    /// Does something over netlink; sockets of which one failed are opened anew the next time.
    fn netlink<T>(&self, what: &str, work: impl FnOnce(&mut Sockets) -> io::Result<T>) -> Result<T, KernelError> {
        let mut slot = lock(&self.sockets);
        let mut sockets = match slot.take() {
            Some(sockets) => sockets,
            None => program::in_namespace(self.namespace.as_deref(), Sockets::open)?.map_err(unusable)?,
        };
        let done = work(&mut sockets).map_err(|source| KernelError::Netlink { what: what.to_owned(), source })?;
        *slot = Some(sockets);
        Ok(done)
    }

    fn listed(&self) -> Result<Vec<Listed>, KernelError> {
        Ok(servers::listed(&self.proc("ip_vs")?))
    }

    fn proc(&self, name: &str) -> Result<String, KernelError> {
        // By the thread: a process has the network of its first one.
        let path = Path::new("/proc/thread-self/net").join(name);
        let read = program::in_namespace(self.namespace.as_deref(), || std::fs::read_to_string(&path))?;
        read.map_err(|source| KernelError::Netlink { what: path.display().to_string(), source })
    }

    fn look(&self, rules: ByFamily) -> Result<Objects, KernelError> {
        let mut objects = Objects::default();
        let (device, found) = self.netlink("listing routes", |sockets| {
            Ok(match routes::device(&mut sockets.route)? {
                Some((index, up)) => (up, routes::dump(&mut sockets.route, index)?),
                None => (false, BTreeMap::new()),
            })
        })?;
        (objects.device, objects.routes) = (device, found);
        self.observe_sets(&mut objects)?;
        for (family, (chains, jumps)) in rules {
            let tables = objects.families.entry(family).or_default();
            (tables.chains, tables.jumps) = (chains, jumps);
        }
        self.observe_servers(&mut objects)?;
        Ok(objects)
    }

    fn observe_sets(&self, objects: &mut Objects) -> Result<(), KernelError> {
        let read = self.netlink("listing sets", |sockets| {
            let mut read = Vec::new();
            for name in sets::names(&mut sockets.netfilter)? {
                let Some((family, set)) = Set::named(&name) else {
                    read.push((name, None));
                    continue;
                };
                let elements = sets::dump(&mut sockets.netfilter, &name)?;
                read.extend(elements.map(|elements| (name, Some((family, set, elements)))));
            }
            Ok(read)
        })?;
        for (name, known) in read {
            let Some((family, set, elements)) = known else {
                objects.strays.insert(name);
                continue;
            };
            let tables: &mut Tables = objects.families.entry(family).or_default();
            let elements = elements.into_iter().map(|(element, mark)| (sets::as_of(set, element), mark));
            tables.sets.insert(set, elements.collect());
        }
        Ok(())
    }

    fn observe_servers(&self, objects: &mut Objects) -> Result<(), KernelError> {
        let found =
            self.netlink("listing virtual servers", |sockets| servers::dump(&mut sockets.generic, sockets.family))?;
        for (at, server) in found {
            if objects.owns(&at) {
                objects.servers.insert(at, server);
            } else {
                objects.foreign.insert(at);
            }
        }
        if !objects.servers.is_empty() {
            for one in self.listed()? {
                if let Some(server) = objects.servers.get_mut(&one.at) {
                    server.reals.insert(one.address, one.weight);
                }
            }
        }
        Ok(())
    }

    fn execute_sets(&self, ops: &[Op]) -> Result<(), KernelError> {
        let requests: Vec<Request> = ops.iter().filter_map(sets::request).collect();
        let mut refused = self.netlink("sets", |sockets| sockets.netfilter.all(&requests))?;
        for _ in 0..DESTROY_TRIES {
            let busy = |(at, error): &(usize, io::Error)| {
                error.raw_os_error() == Some(4100) && matches!(ops[*at], Op::Destroy { .. })
            };
            if refused.is_empty() || !refused.iter().all(busy) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
            let again: Vec<usize> = refused.iter().map(|(at, _)| *at).collect();
            let requests: Vec<Request> = again.iter().map(|at| requests[*at].clone()).collect();
            refused = self.netlink("sets", |sockets| sockets.netfilter.all(&requests))?;
            refused.iter_mut().for_each(|(at, _)| *at = again[*at]);
        }
        refuse(ops, refused.into_iter().map(|(at, error)| (at, sets::explain(error))))
    }

    fn execute_routes(&self, ops: &[Op]) -> Result<(), KernelError> {
        for group in ops.chunk_by(|one, two| !matches!(one, Op::Device) && !matches!(two, Op::DropDevice)) {
            let refused = self.netlink("routes", |sockets| {
                let index = routes::device(&mut sockets.route)?.map_or(0, |(index, _)| index);
                let requests: Vec<Request> = group.iter().filter_map(|op| routes::request(op, index)).collect();
                sockets.route.all(&requests)
            })?;
            let wrong = |(at, error): &(usize, io::Error)| {
                let fine = match group[*at] {
                    Op::Route { .. } => Errno::EEXIST,
                    Op::DropDevice => Errno::ENODEV,
                    _ => Errno::ESRCH,
                };
                error.raw_os_error() != Some(fine as i32)
            };
            refuse(group, refused.into_iter().filter(wrong))?;
        }
        Ok(())
    }

    /// A virtual server that can't be had is noted, and the rest goes on.
    fn execute_servers(&self, ops: &[Op], lost: &mut Lost) -> Result<(), KernelError> {
        let able: Vec<&Op> = ops.iter().filter(|op| !lost.concerns(op)).collect();
        let mut refused = Vec::new();
        // Real servers only of virtual ones that are there.
        for group in able.chunk_by(|one, two| matches!(one, Op::Add { .. }) == matches!(two, Op::Add { .. })) {
            let group: Vec<&Op> = group.iter().copied().filter(|op| !lost.concerns(op)).collect();
            let done = self.netlink("virtual servers", |sockets| {
                let requests: Vec<Request> =
                    group.iter().filter_map(|op| servers::request(op, sockets.family)).collect();
                sockets.generic.all(&requests)
            })?;
            for (at, error) in done {
                let gone = matches!(group[at], Op::Delete { .. } | Op::Unreal { .. });
                let errno = error.raw_os_error().unwrap_or_default();
                if gone && [Errno::ESRCH as i32, Errno::ENOENT as i32].contains(&errno) {
                    continue;
                }
                if let Op::Add { at, .. } = group[at] {
                    lost.servers.insert(*at);
                }
                refused.push((group[at].clone(), error));
            }
        }
        for (op, error) in refused {
            lost.first
                .get_or_insert(KernelError::Netlink { what: op.to_string(), source: missing_scheduler(&op, error) });
        }
        Ok(())
    }

    fn program(&self, ops: &[Op], lost: &mut Lost) -> Result<(), KernelError> {
        for group in ops.chunk_by(|one, two| channel(one) == channel(two)) {
            let Some(first) = group.first() else {
                continue;
            };
            match channel(first) {
                Channel::Servers => self.execute_servers(group, lost)?,
                Channel::Sets => {
                    let able: Vec<Op> = group.iter().filter(|op| !lost.concerns(op)).cloned().collect();
                    self.execute_sets(&able)?;
                }
                Channel::Routes => self.execute_routes(group)?,
                Channel::Rules => self.rules.write(group)?,
                Channel::None => {}
            }
        }
        Ok(())
    }
}

/// Virtual servers that couldn't be made.
#[derive(Default)]
struct Lost {
    servers: BTreeSet<Virtual>,
    first: Option<KernelError>,
}

impl Lost {
    /// It would let packets in that nobody takes, or needs what isn't there.
    fn concerns(&self, op: &Op) -> bool {
        match op {
            Op::Put { set: Set::Served, element, .. } => {
                element.frontend().is_some_and(|frontend| self.servers.contains(&Virtual::of(frontend)))
            }
            Op::Real { at, .. } | Op::Unreal { at, .. } => self.servers.contains(at),
            _ => false,
        }
    }
}

/// The endpoint that an op gives new connections.
fn served(op: &Op) -> Option<SocketAddr> {
    match op {
        Op::Real { address, weight, .. } if *weight > 0 => Some(*address),
        _ => None,
    }
}

fn refuse(ops: &[Op], mut refused: impl Iterator<Item = (usize, io::Error)>) -> Result<(), KernelError> {
    match refused.next() {
        None => Ok(()),
        Some((at, source)) => {
            let what = ops.get(at).map(ToString::to_string).unwrap_or_default();
            Err(KernelError::Netlink { what, source })
        }
    }
}

fn missing_scheduler(op: &Op, error: io::Error) -> io::Error {
    match op {
        Op::Add { balance, .. } | Op::Edit { balance, .. } if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            let name = &balance.scheduler;
            io::Error::other(format!("this kernel has no scheduler {name} (module ip_vs_{name})"))
        }
        _ => error,
    }
}

/// Sockets that couldn't be opened: what a host lacks.
fn unusable(error: io::Error) -> KernelError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::EPROTONOSUPPORT) => KernelError::Lacks("IPVS (module ip_vs)"),
        Some(Errno::EPERM | Errno::EACCES) => KernelError::Lacks("the permission to change its IPVS: CAP_NET_ADMIN"),
        _ => KernelError::Netlink { what: "opening sockets".to_owned(), source: error },
    }
}

impl Kernel<IpvsPlane> for Ipvs {
    fn mode(&self) -> &'static str {
        "ipvs"
    }

    fn settings(&self) -> Result<Vec<String>, KernelError> {
        let wrong = settings::needed(self.namespace.as_deref())?;
        Ok(wrong.iter().map(ToString::to_string).collect())
    }

    fn audit_every(&self) -> Duration {
        READ_EVERY
    }

    fn observe(&self) -> Result<Objects, KernelError> {
        self.look(self.rules.fresh()?)
    }

    fn audit(&self) -> Result<Objects, KernelError> {
        self.look(self.rules.recent()?)
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        self.forgetter.serve(ops.iter().filter_map(served));
        let mut lost = Lost::default();
        let done = self.program(ops, &mut lost);
        // Also after a refusal: what went in won't show these flows as stale again.
        let flows = ops.iter().filter_map(|op| if let Op::Forget(flows) = op { Some(flows.clone()) } else { None });
        self.forgetter.forget(self.namespace.as_deref(), flows.collect());
        done?;
        let foreign = ops.iter().find(|op| matches!(op, Op::Foreign { .. }));
        match (lost.first, foreign) {
            (Some(error), _) => Err(error),
            (None, Some(op)) => Err(KernelError::Refused(op.to_string())),
            (None, None) => Ok(()),
        }
    }
}

fn is_reachable(ip: &IpAddr) -> bool {
    let one_link = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !one_link && !ip.is_loopback()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
