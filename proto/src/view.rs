//! What one node knows: services, their endpoints, its own pods, the other nodes.
//!
//! Law: `fold(full(r), deltas r→n) == full(n)`, for any cut and any coalescing. `fold` is total: a delta that doesn't
//! fit says so and the view asks for a full one. Cost of a fold is O(delta), the digest's included.

use crate::digest::SetDigest;
use crate::v1::{Endpoint, EndpointRef, NodeDelta, NodeItem, Pod, ServiceEndpoints, ServiceItem};
use prost::Message as _;
use std::collections::BTreeMap;

/// "namespace/name" of a service or a pod, split.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl NamespacedName {
    /// Makes one of its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Splits "namespace/name"; without a slash the namespace is empty.
    #[must_use]
    pub fn parse(path: &str) -> Self {
        let (namespace, name) = path.split_once('/').unwrap_or(("", path));
        Self::new(namespace, name)
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Identity of an endpoint within its service: address, then pod name.
pub type EndpointId = (String, String);

/// A service and its endpoints. Both are kept encoded, at a fifth of their size: a node keeps those of all services, and
/// looks at few.
#[derive(Clone, Default, PartialEq)]
pub struct ServiceView {
    item: Box<[u8]>,
    /// All endpoints: ready, not ready and terminating.
    pub endpoints: EndpointList,
}

impl ServiceView {
    /// Makes one.
    #[must_use]
    pub fn new(item: &ServiceItem, endpoints: EndpointList) -> Self {
        Self { item: item.encode_to_vec().into_boxed_slice(), endpoints }
    }

    /// The service's rules-relevant fields.
    #[must_use]
    pub fn item(&self) -> ServiceItem {
        // INVARIANT: what is encoded here was a service.
        ServiceItem::decode(&*self.item).unwrap_or_default()
    }
}

impl std::fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceView").field("item", &self.item()).field("endpoints", &self.endpoints).finish()
    }
}

/// Endpoints in the order of their identity.
#[derive(Clone, Default, PartialEq)]
pub struct EndpointList(Vec<Box<[u8]>>);

impl EndpointList {
    /// Every endpoint.
    pub fn values(&self) -> impl Iterator<Item = Endpoint> {
        self.0.iter().map(|encoded| decoded(encoded))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &EndpointId) -> Option<Endpoint> {
        self.find(id).ok().map(|at| decoded(&self.0[at]))
    }

    /// Puts one in; the answer is what it replaces.
    pub fn insert(&mut self, endpoint: &Endpoint) -> Option<Endpoint> {
        let encoded = endpoint.encode_to_vec().into_boxed_slice();
        match self.find(&endpoint_id(endpoint)) {
            Ok(at) => Some(decoded(&std::mem::replace(&mut self.0[at], encoded))),
            Err(at) => {
                if self.0.len() < FEW {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, encoded);
                None
            }
        }
    }

    /// Takes out the one that a delta means: without a pod's name, the only one with its address.
    fn take(&mut self, reference: &EndpointRef) -> Option<Endpoint> {
        let at = match self.find(&(reference.address.clone(), reference.pod_name.clone())) {
            Ok(at) => at,
            // They are in order of their addresses: it would follow.
            Err(at) if reference.pod_name.is_empty() => {
                let has_address =
                    |at: usize| self.0.get(at).is_some_and(|one| decoded(one).address == reference.address);
                Some(at).filter(|at| has_address(*at) && !has_address(at + 1))?
            }
            Err(_) => return None,
        };
        Some(decoded(&self.0.remove(at)))
    }

    fn find(&self, id: &EndpointId) -> Result<usize, usize> {
        self.0.binary_search_by(|encoded| endpoint_id(&decoded(encoded)).cmp(id))
    }
}

impl FromIterator<Endpoint> for EndpointList {
    fn from_iter<T: IntoIterator<Item = Endpoint>>(endpoints: T) -> Self {
        let mut list = Self::default();
        for endpoint in endpoints {
            list.insert(&endpoint);
        }
        list
    }
}

impl std::fmt::Debug for EndpointList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.values()).finish()
    }
}

/// INVARIANT: what is encoded here was an endpoint.
fn decoded(encoded: &[u8]) -> Endpoint {
    Endpoint::decode(encoded).unwrap_or_default()
}

/// The whole of what a node needs to program its kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    /// Revision that the view reflects; 0 = nothing yet.
    pub revision: u64,
    /// Services by name.
    pub services: BTreeMap<NamespacedName, ServiceView>,
    /// Pods bound to this node.
    pub pods: BTreeMap<NamespacedName, Pod>,
    /// Every node's addresses and zone.
    pub nodes: BTreeMap<String, NodeItem>,
    digest: SetDigest,
}

/// Why a delta can't be folded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    /// The delta starts at another revision than the view.
    #[error("delta starts at revision {from}, the view is at {have}")]
    Gap {
        /// Where the delta starts.
        from: u64,
        /// Where the view is.
        have: u64,
    },
    /// The resulting view differs from what the server has.
    #[error("view digest mismatch at revision {0}")]
    Digest(u64),
    /// An endpoint of a service that the view doesn't have.
    #[error("endpoint of unknown service {0}")]
    UnknownService(NamespacedName),
}

/// What a fold touched; the input of an incremental compile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Touched {
    /// Everything is new.
    pub all: bool,
    /// Services whose item or endpoints changed or that were removed.
    pub services: std::collections::BTreeSet<NamespacedName>,
    /// Pods of this node that changed or were removed.
    pub pods: std::collections::BTreeSet<NamespacedName>,
    /// Some node changed.
    pub nodes: bool,
    /// Endpoints that were taken out of their services, though their pods go on.
    pub released: Vec<(NamespacedName, Endpoint)>,
}

/// A list that is shorter is not given room to grow.
const FEW: usize = 8;
/// Length of a view's digest.
const DIGEST_BYTES: usize = 8;
const SERVICE: u8 = 1;
const ENDPOINT: u8 = 2;
const POD: u8 = 3;
const NODE: u8 = 4;

impl NodeView {
    /// Digest of the content (not of the revision); equal views have equal digests on every machine.
    #[must_use]
    pub fn digest(&self) -> Vec<u8> {
        shortened(self.digest)
    }

    /// Folds one message of a delta into the view.
    ///
    /// # Errors
    /// [`FoldError`]; the view must then be dropped and asked for anew.
    pub fn fold(&mut self, delta: &NodeDelta) -> Result<Touched, FoldError> {
        let mut touched = Touched::default();
        match delta.from {
            None => {
                *self = Self::default();
                touched.all = true;
            }
            Some(from) if from != self.revision => {
                return Err(FoldError::Gap { from, have: self.revision });
            }
            Some(_) => {}
        }
        for path in &delta.remove_services {
            let key = NamespacedName::parse(path);
            self.remove_service(&key);
            touched.services.insert(key);
        }
        for item in &delta.upsert_services {
            touched.services.insert(NamespacedName::new(&item.namespace, &item.name));
            self.upsert_service(item);
        }
        for group in &delta.endpoints {
            let name = NamespacedName::new(&group.namespace, &group.service);
            for reference in &group.remove {
                let gone = self.remove_endpoint(&name, reference).filter(|_| reference.alive);
                touched.released.extend(gone.map(|endpoint| (name.clone(), endpoint)));
            }
            for endpoint in &group.upsert {
                self.upsert_endpoint(&name, endpoint)?;
            }
            touched.services.insert(name);
        }
        for path in &delta.remove_pods {
            let key = NamespacedName::parse(path);
            if let Some(old) = self.pods.remove(&key) {
                self.digest.remove(POD, &old.encode_to_vec());
            }
            touched.pods.insert(key);
        }
        for pod in &delta.upsert_pods {
            let key = pod_key(pod);
            self.digest.add(POD, &pod.encode_to_vec());
            if let Some(old) = self.pods.insert(key.clone(), pod.clone()) {
                self.digest.remove(POD, &old.encode_to_vec());
            }
            touched.pods.insert(key);
        }
        for name in &delta.remove_nodes {
            if let Some(old) = self.nodes.remove(name) {
                self.digest.remove(NODE, &old.encode_to_vec());
            }
            touched.nodes = true;
        }
        for node in &delta.upsert_nodes {
            self.digest.add(NODE, &node.encode_to_vec());
            if let Some(old) = self.nodes.insert(node.name.clone(), node.clone()) {
                self.digest.remove(NODE, &old.encode_to_vec());
            }
            touched.nodes = true;
        }
        // Parts of one step share `from`, so the revision moves only with the last part; a full view's first part
        // resets, the others say `from: 0`.
        if !delta.more {
            self.revision = delta.to;
            if !delta.digest.is_empty() && delta.digest != self.digest() {
                return Err(FoldError::Digest(delta.to));
            }
        }
        Ok(touched)
    }

    /// The view as one full delta.
    #[must_use]
    pub fn to_delta(&self) -> NodeDelta {
        self.parts(usize::MAX).next().unwrap_or_default()
    }

    /// The same in parts, none with many more than so many items: whoever handles one at a time needs little memory.
    pub fn parts(&self, items: usize) -> impl Iterator<Item = NodeDelta> {
        let mut services = self.services.iter();
        let mut from = Some(None);
        std::iter::from_fn(move || {
            let mut part = NodeDelta { from: from?, to: self.revision, more: true, ..NodeDelta::default() };
            if part.from.is_none() {
                part.upsert_pods = self.pods.values().cloned().collect();
                part.upsert_nodes = self.nodes.values().cloned().collect();
            }
            let mut count = 0;
            while count < items {
                let Some((name, service)) = services.next() else {
                    part.more = false;
                    break;
                };
                part.upsert_services.push(service.item());
                count += 1 + service.endpoints.len();
                if !service.endpoints.is_empty() {
                    part.endpoints.push(ServiceEndpoints {
                        namespace: name.namespace.clone(),
                        service: name.name.clone(),
                        remove: Vec::new(),
                        upsert: service.endpoints.values().collect(),
                    });
                }
            }
            if !part.more {
                part.digest = self.digest();
            }
            from = part.more.then_some(Some(0));
            Some(part)
        })
    }

    fn upsert_service(&mut self, item: &ServiceItem) {
        let new = ServiceView::new(item, EndpointList::default());
        self.digest.add(SERVICE, &new.item);
        let entry = self.services.entry(NamespacedName::new(&item.namespace, &item.name));
        match entry {
            std::collections::btree_map::Entry::Occupied(mut old) => {
                self.digest.remove(SERVICE, &old.get().item);
                old.get_mut().item = new.item;
            }
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(new);
            }
        }
    }

    fn remove_service(&mut self, key: &NamespacedName) {
        if let Some(old) = self.services.remove(key) {
            self.digest.remove(SERVICE, &old.item);
            for endpoint in old.endpoints.values() {
                self.digest.remove(ENDPOINT, &encode_endpoint(key, &endpoint));
            }
        }
    }

    fn upsert_endpoint(&mut self, key: &NamespacedName, endpoint: &Endpoint) -> Result<(), FoldError> {
        let Some(service) = self.services.get_mut(key) else {
            return Err(FoldError::UnknownService(key.clone()));
        };
        self.digest.add(ENDPOINT, &encode_endpoint(key, endpoint));
        if let Some(old) = service.endpoints.insert(endpoint) {
            self.digest.remove(ENDPOINT, &encode_endpoint(key, &old));
        }
        Ok(())
    }

    fn remove_endpoint(&mut self, key: &NamespacedName, reference: &EndpointRef) -> Option<Endpoint> {
        let service = self.services.get_mut(key)?;
        let old = service.endpoints.take(reference)?;
        self.digest.remove(ENDPOINT, &encode_endpoint(key, &old));
        Some(old)
    }
}

/// The digest of a view, kept item by item: for servers, which know what a node's view holds without building it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewDigest(SetDigest);

impl ViewDigest {
    /// Counts a service in.
    pub fn add_service(&mut self, item: &ServiceItem) {
        self.0.add(SERVICE, &item.encode_to_vec());
    }
    /// Counts a service out.
    pub fn remove_service(&mut self, item: &ServiceItem) {
        self.0.remove(SERVICE, &item.encode_to_vec());
    }
    /// Counts an endpoint of a service in.
    pub fn add_endpoint(&mut self, service: &NamespacedName, endpoint: &Endpoint) {
        self.0.add(ENDPOINT, &encode_endpoint(service, endpoint));
    }
    /// Counts an endpoint of a service out.
    pub fn remove_endpoint(&mut self, service: &NamespacedName, endpoint: &Endpoint) {
        self.0.remove(ENDPOINT, &encode_endpoint(service, endpoint));
    }
    /// Counts a pod of the node in.
    pub fn add_pod(&mut self, pod: &Pod) {
        self.0.add(POD, &pod.encode_to_vec());
    }
    /// Counts a pod of the node out.
    pub fn remove_pod(&mut self, pod: &Pod) {
        self.0.remove(POD, &pod.encode_to_vec());
    }
    /// Counts everything in that another digest counts.
    pub fn add_all(&mut self, other: Self) {
        self.0.add_all(other.0);
    }
    /// Counts a node in.
    pub fn add_node(&mut self, node: &NodeItem) {
        self.0.add(NODE, &node.encode_to_vec());
    }
    /// Counts a node out.
    pub fn remove_node(&mut self, node: &NodeItem) {
        self.0.remove(NODE, &node.encode_to_vec());
    }
    /// As [`NodeView::digest`] gives it.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        shortened(self.0)
    }
}

/// Every delta carries one: 64 bits find an accident as well as 256 would.
fn shortened(digest: SetDigest) -> Vec<u8> {
    let mut bytes = digest.to_bytes();
    bytes.truncate(DIGEST_BYTES);
    bytes
}

/// Identity of an endpoint within its service.
#[must_use]
pub fn endpoint_id(endpoint: &Endpoint) -> EndpointId {
    (endpoint.address.clone(), endpoint.pod_name.clone())
}

/// Name of a pod.
#[must_use]
pub fn pod_key(pod: &Pod) -> NamespacedName {
    let metadata = pod.metadata.clone().unwrap_or_default();
    NamespacedName::new(metadata.namespace, metadata.name)
}

fn encode_endpoint(service: &NamespacedName, endpoint: &Endpoint) -> Vec<u8> {
    ServiceEndpoints {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        remove: Vec::new(),
        upsert: vec![endpoint.clone()],
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, pod_name: &str) -> Endpoint {
        Endpoint { address: address.into(), pod_name: pod_name.into(), ..Endpoint::default() }
    }

    fn view(services: usize) -> NodeView {
        let item = |n| ServiceItem { namespace: "shop".into(), name: format!("s{n}"), ..ServiceItem::default() };
        let endpoints = |n| ServiceEndpoints {
            namespace: "shop".into(),
            service: format!("s{n}"),
            upsert: (0..n).map(|i| endpoint(&format!("10.244.{n}.{i}"), "p")).collect(),
            ..ServiceEndpoints::default()
        };
        let mut view = NodeView::default();
        let delta = NodeDelta {
            to: 5,
            upsert_services: (0..services).map(item).collect(),
            endpoints: (0..services).map(endpoints).collect(),
            upsert_nodes: vec![NodeItem { name: "n".into(), ..NodeItem::default() }],
            ..NodeDelta::default()
        };
        view.fold(&delta).unwrap();
        view
    }

    #[test]
    fn parts_fold_to_the_view() {
        for services in [0, 1, 7] {
            for items in [1, 2, 3, 8, usize::MAX] {
                let whole = view(services);
                let mut folded = view(3);
                for part in whole.parts(items) {
                    folded.fold(&part).unwrap();
                }
                assert_eq!(folded, whole, "{services} services, {items} items");
            }
        }
    }

    #[test]
    fn an_endpoint_is_found_by_its_address_if_no_other_has_it() {
        let all = ["a p", "b ", "b p", "c p", "c q"].map(|one| one.split_once(' ').unwrap());
        let list: EndpointList = all.iter().map(|(address, pod)| endpoint(address, pod)).collect();
        let taken = |address: &str, pod_name: &str| {
            let reference =
                EndpointRef { address: address.into(), pod_name: pod_name.into(), ..EndpointRef::default() };
            list.clone().take(&reference).map(|endpoint| endpoint.pod_name)
        };
        assert_eq!(taken("a", "").as_deref(), Some("p"));
        assert_eq!(taken("a", "p").as_deref(), Some("p"));
        assert_eq!(taken("a", "q"), None);
        assert_eq!(taken("b", "").as_deref(), Some(""));
        assert_eq!(taken("c", ""), None, "which of the two?");
        assert_eq!(taken("c", "q").as_deref(), Some("q"));
        assert_eq!(taken("d", ""), None);
    }
}
