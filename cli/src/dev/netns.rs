//! The network namespace of `fairlead dev`: loopback with a node's and a pod's address, and a route for VIPs.

use anyhow::Context as _;
use futures::TryStreamExt as _;
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::{LinkUnspec, NetworkNamespace, RouteMessageBuilder};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The node's address in the namespace.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The echo pod's address in the namespace.
pub const POD_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

/// A named network namespace (`ip netns`); [`Namespace::remove`] deletes it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it and gives loopback its addresses and the service range its route.
    pub async fn create(name: &str, service_cidr: IpNet) -> anyhow::Result<Self> {
        let namespace = Self { name: name.to_owned() };
        let path = namespace.path();
        let made = tokio::task::spawn_blocking(move || make(&path)).await?;
        made.with_context(|| format!("can't make the network namespace {name}"))?;
        if let Err(error) = enter_and_configure(namespace.path(), service_cidr).await {
            namespace.remove().await;
            return Err(error);
        }
        Ok(namespace)
    }

    /// Its name, as `ip netns exec` wants it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Deletes it with everything in it.
    pub async fn remove(self) {
        if let Err(error) = NetworkNamespace::del(self.name.clone()).await {
            tracing::warn!(netns = self.name, %error, "can't delete the network namespace");
        }
    }
}

/// Makes a named namespace where `ip netns` looks for it. rtnetlink's helper forks for that, and its child's exit would run
/// the destructors of this process's libraries: RocksDB's crash.
fn make(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().context("no directory")?;
    std::fs::create_dir_all(directory)?;
    share(directory)?;
    std::fs::File::options().write(true).create_new(true).open(path)?;
    let here = path.to_owned();
    let entered = std::thread::Builder::new().name("netns".into()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &here, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    })?;
    let mounted = entered.join().unwrap_or(Err(nix::Error::EINVAL));
    if mounted.is_err() {
        let _ = std::fs::remove_file(path);
    }
    Ok(mounted?)
}

/// A mount in it is seen in every mount namespace, as with `ip netns`.
fn share(directory: &Path) -> nix::Result<()> {
    let shared = || mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    shared().or_else(|_| {
        mount(Some(directory), directory, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        shared()
    })
}

/// A thread of its own enters the namespace: the process's others stay where they are.
async fn enter_and_configure(path: PathBuf, service_cidr: IpNet) -> anyhow::Result<()> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let configured = (|| {
            let file = std::fs::File::open(&path)?;
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(configure(service_cidr))
        })();
        let _ = done.send(configured);
    })?;
    result.await?
}

async fn configure(service_cidr: IpNet) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let lo = handle
        .link()
        .get()
        .match_name("lo".to_owned())
        .execute()
        .try_next()
        .await?
        .context("no loopback in the namespace")?;
    let index = lo.header.index;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.context("loopback up")?;
    for ip in [NODE_IP, POD_IP] {
        handle.address().add(index, ip.into(), 32).execute().await.with_context(|| format!("address {ip}"))?;
    }
    debug_assert!(lo.header.flags.contains(LinkFlags::Loopback));
    // connect() needs some route before the rules can rewrite the destination; the source is then the node's address.
    if let IpNet::V4(cidr) = service_cidr {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(cidr.network(), cidr.prefix_len())
            .output_interface(index)
            .pref_source(NODE_IP)
            .build();
        handle.route().add(route).execute().await.context("route of the service range")?;
    }
    Ok(())
}
