//! nftables of the host or of a network namespace. Elements go over netlink, from the process; the fixed rules, which
//! change at the first start and with a new class only, are written and read back by `nft`.

pub(super) mod netlink;
mod text;

use crate::kernel::linux::conntrack::Forgetter;
use crate::kernel::linux::program;
use crate::kernel::{Kernel, KernelError, Notice};
use crate::plan::Family;
use crate::plan::nftables::set::family_name;
use crate::plan::nftables::structure::{PICKS, TABLE, client_maps, sample};
use crate::plan::nftables::{Bytes, NftablesPlane, Observed, Op, Set, Structure, Table};
use netlink::{Edit, Nfnl, TRANSACTION_BYTES, Watch};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rounds of looking for clients of a gone endpoint: one that came between two looks is found by the next.
const PURGES: usize = 8;

/// The packet filter.
pub struct Nftables {
    namespace: Option<PathBuf>,
    socket: Mutex<Option<Nfnl>>,
    /// Port of the socket.
    port: Arc<AtomicU32>,
    /// Sets and chains that we wrote, as this `nft` lists them, and as we wrote them.
    spellings: Mutex<BTreeMap<(Family, String), Spelling>>,
    forgetter: Forgetter,
}

struct Spelling {
    written: Vec<String>,
    listed: Vec<String>,
}

impl Nftables {
    /// Of a network namespace, by its file; `None` = the process's.
    #[must_use]
    pub fn new(namespace: Option<PathBuf>) -> Self {
        Self {
            namespace,
            socket: Mutex::default(),
            port: Arc::default(),
            spellings: Mutex::default(),
            forgetter: Forgetter::default(),
        }
    }

    /// Whether this host's kernel and `nft` take our rules; nothing is changed.
    ///
    /// # Errors
    /// [`KernelError`]: why not.
    pub fn check(&self) -> Result<(), KernelError> {
        for family in Family::ALL {
            self.nft(&["--check", "--file", "-"], &text::making(&sample(family)))?;
        }
        Ok(())
    }

    /// Families that have a table of ours.
    ///
    /// # Errors
    /// [`KernelError`] if they can't be read.
    pub fn families(&self) -> Result<Vec<Family>, KernelError> {
        let mut families = Vec::new();
        for family in Family::ALL {
            families.extend(self.list(family)?.map(|_| family));
        }
        Ok(families)
    }

    fn nft(&self, arguments: &[&str], input: &str) -> Result<String, KernelError> {
        program::run(self.namespace.as_deref(), "nft", (arguments, input))
    }

    fn list(&self, family: Family) -> Result<Option<Structure>, KernelError> {
        match self.nft(&["--terse", "list", "table", family_name(family), TABLE], "") {
            Ok(text) => Ok(Some(text::listed(&text))),
            Err(KernelError::Failed { message, .. }) if message.contains("No such file or directory") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Does something over netlink; a socket that failed is opened anew the next time.
    fn netlink<T>(&self, work: impl FnOnce(&mut Nfnl) -> io::Result<T>) -> io::Result<T> {
        let mut slot = lock(&self.socket);
        let mut socket = match slot.take() {
            Some(socket) => socket,
            None => {
                let opened = program::in_namespace(self.namespace.as_deref(), Nfnl::open);
                let socket = opened.map_err(io::Error::other)??;
                self.port.store(socket.port()?, Ordering::Release);
                socket
            }
        };
        let done = work(&mut socket)?;
        *slot = Some(socket);
        Ok(done)
    }

    fn commit(&self, family: Family, edits: &[Edit<'_>]) -> Result<(), KernelError> {
        let mut rest = edits;
        while !rest.is_empty() {
            let mut size = 0;
            let fits = |edit: &&Edit<'_>| {
                size += edit.key.len() + edit.data.len() + 48;
                size < TRANSACTION_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (group, behind) = rest.split_at(count);
            self.netlink(|socket| socket.commit(family, group)).map_err(|source| failed(family, group, source))?;
            rest = behind;
        }
        Ok(())
    }

    fn elements(&self, family: Family, ops: &[Op]) -> Result<(), KernelError> {
        let names: BTreeMap<Set, String> = ops.iter().filter_map(set_of).map(|set| (set, set.name())).collect();
        let mut first = Vec::new();
        let mut removed = Vec::new();
        let mut last = Vec::new();
        for op in ops {
            match op {
                Op::Put { family: of, set, key, data, replaces } if *of == family => {
                    let edit = Edit { set: &names[set], key: key.as_slice(), data: data.as_slice(), remove: false };
                    if *replaces {
                        first.push(Edit { remove: true, ..edit });
                    }
                    first.push(edit);
                }
                Op::Remove { family: of, set, key } if *of == family => {
                    let edit = Edit { set: &names[set], key: key.as_slice(), data: &[], remove: true };
                    if set.is_removed_last() { last.push(edit) } else { removed.push(edit) }
                }
                _ => {}
            }
        }
        first.append(&mut removed);
        self.commit(family, &first)?;
        self.commit(family, &last)
    }

    /// Forgets the clients of gone endpoints, and looks again until there is none.
    fn purge(&self, ops: &[Op]) -> Result<(), KernelError> {
        let mut gone: BTreeMap<(Family, u32), Vec<(u32, SocketAddr)>> = BTreeMap::new();
        for op in ops {
            if let Op::Purge { family, seconds, pool, endpoint } = op {
                gone.entry((*family, *seconds)).or_default().push((*pool, *endpoint));
            }
        }
        for ((family, seconds), gone) in gone {
            let mut left = 0;
            for _ in 0..PURGES {
                left = self.purge_once(family, seconds, &gone)?;
                if left == 0 {
                    break;
                }
            }
            if left > 0 {
                tracing::warn!(
                    left,
                    seconds,
                    "clients still come to a gone endpoint; those stay with it until they time out"
                );
            }
        }
        Ok(())
    }

    fn purge_once(&self, family: Family, seconds: u32, gone: &[(u32, SocketAddr)]) -> Result<usize, KernelError> {
        let [addresses, ports] = client_maps(seconds);
        let dumped = self.netlink(|socket| Ok((socket.dump(family, &addresses)?, socket.dump(family, &ports)?)));
        let (clients, client_ports) =
            dumped.map_err(|source| KernelError::Netlink { what: addresses.clone(), source })?;
        let ports_of: BTreeMap<&[u8], &[u8]> =
            client_ports.iter().map(|one| (one.key.as_slice(), one.data.as_slice())).collect();
        let stale = clients.iter().filter(|client| {
            gone.iter().any(|(pool, endpoint)| {
                client.key.get(..4) == Some(pool.to_ne_bytes().as_slice())
                    && Bytes::read(&client.data) == Bytes::address(endpoint.ip())
                    && ports_of
                        .get(client.key.as_slice())
                        .is_none_or(|port| port.get(..2) == Some(endpoint.port().to_be_bytes().as_slice()))
            })
        });
        let mut count = 0;
        for client in stale {
            count += 1;
            for set in [&addresses, &ports] {
                let edit = Edit { set, key: &client.key, data: &[], remove: true };
                match self.netlink(|socket| socket.commit(family, &[edit])) {
                    // It timed out meanwhile.
                    Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => {}
                    done => done.map_err(|source| failed(family, &[edit], source))?,
                }
            }
        }
        Ok(count)
    }

    /// Notes how this `nft` spells what was just written.
    fn note_spellings(&self, ops: &[Op]) -> Result<(), KernelError> {
        let mut listed: BTreeMap<Family, Structure> = BTreeMap::new();
        for op in ops {
            let (Op::Chain { family, name, lines } | Op::Declare { family, name, lines }) = op else {
                continue;
            };
            if !listed.contains_key(family) {
                listed.insert(*family, self.list(*family)?.unwrap_or_default());
            }
            let structure = &listed[family];
            if let Some(listed) = structure.chains.get(name).or_else(|| structure.sets.get(name)) {
                let spelling = Spelling { written: lines.clone(), listed: listed.clone() };
                lock(&self.spellings).insert((*family, name.clone()), spelling);
            }
        }
        Ok(())
    }

    /// What makes structure, elements, what removes structure.
    fn program(&self, ops: &[Op]) -> Result<(), KernelError> {
        let making = text::making(ops);
        if !making.is_empty() {
            self.nft(&["-f", "-"], &making)?;
            self.note_spellings(ops)?;
        }
        for family in Family::ALL.into_iter().filter(|family| !text::is_rebuilt(ops, *family)) {
            self.elements(family, ops)?;
        }
        let removing = text::removing(ops);
        if !removing.is_empty() {
            self.nft(&["-f", "-"], &removing)?;
        }
        Ok(())
    }

    fn observe_family(&self, family: Family) -> Result<Option<Table>, KernelError> {
        let Some(mut structure) = self.list(family)? else {
            return Ok(None);
        };
        for (name, lines) in structure.sets.iter_mut().chain(&mut structure.chains) {
            if let Some(spelling) =
                lock(&self.spellings).get(&(family, name.clone())).filter(|one| one.listed == *lines)
            {
                lines.clone_from(&spelling.written);
            }
        }
        let dump = |name: &str| match self.netlink(|socket| socket.dump(family, name)) {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(Vec::new()),
            done => done.map_err(|source| KernelError::Netlink { what: name.to_owned(), source }),
        };
        let mut table = Table::default();
        for set in structure.sets.keys().filter_map(|name| Set::named(name)) {
            let read = dump(&set.name())?;
            table.elements.extend(read.iter().map(|one| ((set, Bytes::read(&one.key)), Bytes::read(&one.data))));
        }
        for pick in dump(PICKS)? {
            let class =
                Bytes::read(&pick.key).number_at(0).unwrap_or_default() >> crate::plan::nftables::set::CLASS_SHIFT;
            structure.picks.insert(u16::try_from(class).unwrap_or_default(), pick.chain);
        }
        table.structure = structure;
        Ok(Some(table))
    }
}

impl Kernel<NftablesPlane> for Nftables {
    fn mode(&self) -> &'static str {
        "nftables"
    }

    fn observe(&self) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        for family in Family::ALL {
            if let Some(table) = self.observe_family(family)? {
                observed.tables.insert(family, table);
            }
        }
        Ok(observed)
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        self.forgetter.serve(ops.iter().filter_map(served));
        let done = self.program(ops);
        // Also after a refusal: what went in won't show these clients and flows as stale again.
        let purged = self.purge(ops);
        let flows: Vec<_> =
            ops.iter().filter_map(|op| if let Op::Forget(flows) = op { Some(flows.clone()) } else { None }).collect();
        self.forgetter.forget(self.namespace.as_deref(), flows);
        done.and(purged)
    }

    fn watch(&self, mut notice: Notice) -> Result<bool, KernelError> {
        let failed = |source| KernelError::Netlink { what: "changes by others".to_owned(), source };
        let watch = program::in_namespace(self.namespace.as_deref(), Watch::open)?.map_err(failed)?;
        let port = self.port.clone();
        let listen = move || {
            let mut goes_on = true;
            while goes_on {
                match watch.heard(|of| of == port.load(Ordering::Acquire)) {
                    Ok(heard) => goes_on = notice(heard),
                    Err(error) => {
                        tracing::error!(%error, "changes of nftables can't be heard of any more; the readings go on");
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new().name("nftables-watch".into()).spawn(listen).map_err(failed)?;
        Ok(true)
    }
}

/// The endpoint that gets new flows by an op.
fn served(op: &Op) -> Option<SocketAddr> {
    match op {
        Op::Put { family, set: Set::Endpoints(_), data, .. } => data.to_endpoint(*family),
        _ => None,
    }
}

fn set_of(op: &Op) -> Option<Set> {
    match op {
        Op::Put { set, .. } | Op::Remove { set, .. } => Some(*set),
        _ => None,
    }
}

fn failed(family: Family, edits: &[Edit<'_>], source: io::Error) -> KernelError {
    let sets: std::collections::BTreeSet<&str> = edits.iter().map(|edit| edit.set).collect();
    let what = format!("{} {TABLE}: {}", family_name(family), sets.into_iter().collect::<Vec<_>>().join(", "));
    KernelError::Netlink { what, source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
