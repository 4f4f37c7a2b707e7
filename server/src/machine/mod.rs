//! The replicated state machine: the cluster as a value, and the one pure function that changes it.
//!
//! Laws, checked after every command of random histories (`tests`):
//! - `apply` is total and deterministic: no clock, no randomness, no IO, no unordered map; it can reject, not fail. Two
//!   servers that applied the same entries have the same digest.
//! - Revisions are dense: an entry that changes k objects takes k consecutive ones, the cause before its effects.
//! - What services hold is what the pools lack: every ClusterIP and NodePort in use has one owner, and no other is taken.
//! - The Endpoints of every Service with a selector equal [`derive::derive`] of its pods and nodes.
//! - `from_records(records(s)) == s`, with the same digest.

pub mod access;
pub mod allocate;
mod conflicts;
mod dedupe;
mod delete;
pub mod derive;
mod draft;
mod families;
pub mod members;
mod nodes;
mod outcome;
mod put;
pub(crate) mod records;
mod service;
mod state;
pub mod version;

#[cfg(test)]
pub(crate) mod tests;

pub use conflicts::{ADDRESS_CONFLICT, CIDR_CONFLICT};
pub use records::{DecodeError, FORMAT_VERSION};
pub use state::{Settings, State};
pub use version::MACHINE_VERSION;

use crate::watch::history::History;
use draft::Draft;
use fairlead_proto::internal::v1::{
    Entry, InitCluster, Outcome, Rejection, StateMeta, StateRecord, StoredEvent, command, state_record,
};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::v1::{Kind, Namespace, NamespaceStatus, ObjectMeta, WriteEffect};
use prost::Message as _;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Namespaces that every cluster has and that can't be deleted.
pub const STANDING_NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// The effect of an entry on one object. Its revision is the object's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Revision of the cluster after this change.
    pub revision: u64,
    /// Time of the entry, milliseconds since the epoch.
    pub at_ms: u64,
    /// The object.
    pub key: Key,
    /// Before; `None` = it was created.
    pub old: Option<ObjectRef>,
    /// After; `None` = it was deleted.
    pub new: Option<ObjectRef>,
}

/// Tags of a [`StoredEvent`]'s objects.
const OLD: u32 = 3;
const NEW: u32 = 4;

impl Change {
    /// As stored and sent.
    #[must_use]
    pub fn to_stored(&self) -> StoredEvent {
        StoredEvent {
            revision: self.revision,
            at_ms: self.at_ms,
            old: self.old.as_deref().cloned(),
            new: self.new.as_deref().cloned(),
        }
    }

    /// [`Self::to_stored`], encoded without a copy of the objects: every member does this at every write.
    #[must_use]
    pub fn encode_stored(&self) -> Vec<u8> {
        let objects = [(OLD, self.old.as_deref()), (NEW, self.new.as_deref())];
        let objects = objects.into_iter().filter_map(|(tag, object)| Some((tag, object?)));
        let mut bytes =
            StoredEvent { revision: self.revision, at_ms: self.at_ms, ..StoredEvent::default() }.encode_to_vec();
        objects.for_each(|(tag, object)| prost::encoding::message::encode(tag, object, &mut bytes));
        bytes
    }

    /// From what was stored; `None` if there is no object in it.
    #[must_use]
    pub fn from_stored(event: StoredEvent) -> Option<Self> {
        let key = event.new.as_ref().or(event.old.as_ref()).filter(|object| object.kind.is_some())?.key();
        Some(Self {
            revision: event.revision,
            at_ms: event.at_ms,
            key,
            old: event.old.map(Arc::new),
            new: event.new.map(Arc::new),
        })
    }
}

/// Records beside the objects that an entry wrote or removed; look each up in the state: absent = removed. The meta
/// record (`Snapshot::meta`) is changed by every entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TouchedRecords {
    /// Nodes whose lease changed: `State::lease`.
    pub leases: BTreeSet<String>,
    /// Clients whose session's header changed: `State::session`.
    pub sessions: BTreeSet<String>,
    /// Remembered outcomes, by client and sequence: `State::session_write`.
    pub session_writes: BTreeSet<(String, u64)>,
    /// Keys of access records: `State::access`.
    pub access: BTreeSet<String>,
}

/// What an entry did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Answer to the proposer.
    pub outcome: Outcome,
    /// Changed objects, in the order of their revisions.
    pub changes: Vec<Change>,
    /// Changed records that are no objects.
    pub touched: TouchedRecords,
}

/// One published state with its window of events. Immutable, shared as `Arc<Snapshot>`; a clone costs O(1).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The cluster.
    pub state: State,
    /// Its recent changes, up to `state.revision()`.
    pub history: History,
}

impl Snapshot {
    /// Applies an entry to the state and adds its changes to the window.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        let applied = apply(&mut self.state, entry);
        for change in &applied.changes {
            self.history.push(Arc::new(change.clone()));
        }
        applied
    }

    /// The meta record with the window's compaction point.
    #[must_use]
    pub fn meta(&self) -> StateMeta {
        StateMeta { compacted: self.history.compacted(), ..self.state.meta() }
    }

    /// All of it, as a Raft snapshot holds it: the meta record first, then the state, then the events.
    pub fn records(&self) -> impl Iterator<Item = StateRecord> + '_ {
        let meta = StateRecord { kind: Some(state_record::Kind::Meta(self.meta())) };
        let state = self.state.records().filter(|record| !matches!(record.kind, Some(state_record::Kind::Meta(_))));
        let events = self.history.records().map(|event| StateRecord { kind: Some(state_record::Kind::Event(event)) });
        std::iter::once(meta).chain(state).chain(events)
    }

    /// From its records, the events among them in the order of their revisions.
    ///
    /// # Errors
    /// [`DecodeError`] if they are not a whole, consistent snapshot.
    pub fn from_records(records: impl IntoIterator<Item = StateRecord>) -> Result<Self, DecodeError> {
        let mut compacted = 0;
        let mut events = Vec::new();
        let state = State::from_records(records.into_iter().filter_map(|record| match record.kind {
            Some(state_record::Kind::Event(event)) => {
                events.push(event);
                None
            }
            kind => {
                if let Some(state_record::Kind::Meta(meta)) = &kind {
                    compacted = meta.compacted;
                }
                Some(StateRecord { kind })
            }
        }))?;
        let newest = events.last().map_or(compacted, |event| event.revision);
        let history = History::from_records(compacted, events, |key| state.get(key).cloned())?;
        if newest != state.revision() {
            return Err(DecodeError::Window { newest, revision: state.revision() });
        }
        Ok(Self { state, history })
    }
}

/// Executes one log entry. Never fails: what can't be done is a rejection in the outcome, and then nothing but the
/// entry count, the clock and the dedupe session has changed.
pub fn apply(state: &mut State, entry: &Entry) -> Applied {
    state.count_entry(entry.at_ms);
    let mut touched = TouchedRecords::default();
    if let Some(outcome) = dedupe::recall(state, entry.request_id.as_ref()) {
        return Applied { outcome, ..Applied::default() };
    }
    let before = state.clone();
    let mut draft = Draft::new(state);
    let (outcome, changes) = match execute(&mut draft, entry) {
        Ok(done) => {
            draft.settle();
            let changes;
            (changes, touched) = draft.finish();
            (done.into_outcome(state.revision()), changes)
        }
        Err(rejection) => {
            *state = before;
            (outcome::rejected(state.revision(), rejection), Vec::new())
        }
    };
    dedupe::remember(state, (entry.request_id.as_ref(), &outcome), &mut touched);
    Applied { outcome, changes, touched }
}

/// What a command did, before the outcome is made of it.
#[derive(Clone, Debug, Default)]
struct Done {
    effect: WriteEffect,
    key: Option<Key>,
    object: Option<ObjectRef>,
}

impl Done {
    fn effect(effect: WriteEffect) -> Self {
        Self { effect, ..Self::default() }
    }

    fn object(effect: WriteEffect, object: ObjectRef) -> Self {
        Self { effect, key: Some(object.key()), object: Some(object) }
    }

    /// CONFIGURED if something changed.
    fn configured(changed: bool) -> Self {
        Self::effect(if changed { WriteEffect::Configured } else { WriteEffect::Unchanged })
    }

    fn into_outcome(self, revision: u64) -> Outcome {
        Outcome {
            revision,
            effect: self.effect as i32,
            object: self.object.map(|object| (*object).clone()),
            rejection: None,
            key: self.key.map(|key| key.to_wire()),
        }
    }
}

fn execute(draft: &mut Draft<'_>, entry: &Entry) -> Result<Done, Rejection> {
    let kind = entry.command.as_ref().and_then(|command| command.kind.as_ref());
    let (in_force, needed) = (draft.state.machine_version(), kind.map_or(1, version::needed));
    if needed > in_force {
        let why = format!(
            "this needs machine version {needed}, and the cluster executes version {in_force}: it rises by itself once every member runs the newer fairlead"
        );
        return Err(outcome::unsupported(&why));
    }
    match kind {
        None => Err(outcome::unsupported("the command is empty or of a newer version")),
        Some(command::Kind::Put(put)) => put::put(draft, put),
        Some(command::Kind::Delete(delete)) => delete::delete(draft, delete),
        Some(command::Kind::ReportPods(report)) => nodes::report_pods(draft, report),
        Some(command::Kind::NodeUp(up)) => nodes::node_up(draft, up),
        Some(command::Kind::ExpireNode(expire)) => Ok(nodes::expire_node(draft, expire)),
        Some(command::Kind::SetMember(set)) => members::set(draft, set),
        Some(command::Kind::RemoveMember(remove)) => members::remove(draft, remove),
        Some(command::Kind::SetDrained(set)) => members::set_drained(draft, set),
        Some(command::Kind::SetMachineVersion(set)) => {
            Ok(Done::configured(draft.state.raise_machine_version(set.version)))
        }
        Some(command::Kind::InitCluster(init)) => init_cluster(draft, init),
        Some(command::Kind::PutAccess(put)) => access::put(draft, put),
        Some(command::Kind::DeleteAccess(delete)) => access::delete(draft, delete),
        Some(command::Kind::UseToken(using)) => access::use_token(draft, using),
    }
}

/// First wins: a cluster's identity and ranges never change.
fn init_cluster(draft: &mut Draft<'_>, init: &InitCluster) -> Result<Done, Rejection> {
    if !draft.state.settings().cluster_id.is_empty() {
        return Ok(Done::effect(WriteEffect::Unchanged));
    }
    draft.state.init(init).map_err(|causes| outcome::invalid_command(&causes))?;
    for (index, name) in STANDING_NAMESPACES.iter().enumerate() {
        if draft.state.get(&Key::new(Kind::Namespace, "", *name)).is_some() {
            continue;
        }
        let metadata = ObjectMeta {
            name: (*name).to_owned(),
            uid: init.uids.get(index).cloned().unwrap_or_default(),
            creation_timestamp: draft.now(),
            ..ObjectMeta::default()
        };
        let status = NamespaceStatus { phase: "Active".to_owned() };
        draft.write(Namespace { metadata: Some(metadata), status: Some(status), extra_json: String::new() }.into());
    }
    Ok(Done::effect(WriteEffect::Created))
}
