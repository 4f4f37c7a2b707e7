//! The state as records: what storage keeps and a Raft snapshot carries. Law: `from_records(records(s))` is `s`, with
//! the same digest; pools and indexes are rebuilt, not stored.

use crate::machine::State;
use crate::machine::access::access_key;
use crate::machine::state::{SessionHeader, cluster_addresses, node_ports};
use crate::watch::history::HistoryError;
use fairlead_proto::internal::v1::{Outcome, Session, SessionWrite, StateMeta, StateRecord, state_record};
use fairlead_proto::model::{Key, ObjectRef};
use fairlead_proto::mutant::{self, Mutant};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Version of the record format. A reader refuses a newer one.
pub const FORMAT_VERSION: u32 = 1;

/// Why records are no state. Each is corruption or a newer program's work: a refusal to start, never an empty state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No meta record.
    #[error("the state has no meta record")]
    NoMeta,
    /// More than one meta record.
    #[error("the state has two meta records")]
    TwoMetas,
    /// Written by a newer program.
    #[error("the state has format {0}, this program reads up to {FORMAT_VERSION}: start the version that wrote it")]
    Format(u32),
    /// The cluster's settings don't parse.
    #[error("the state's settings are not valid: {0}")]
    Settings(String),
    /// A record of no known kind.
    #[error("a state record is of an unknown kind")]
    UnknownRecord,
    /// An object that occurs twice.
    #[error("the state has {0} twice")]
    Twice(Key),
    /// An object of a revision beyond the state's.
    #[error("{0} has a revision beyond the state's")]
    Future(Key),
    /// Two services hold one address or port.
    #[error("{0} holds an address or node port that is another's or out of range")]
    Taken(Key),
    /// The event window.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The window doesn't end where the state is.
    #[error("the newest event has revision {newest}, the state {revision}")]
    Window {
        /// Of the newest event.
        newest: u64,
        /// Of the state.
        revision: u64,
    },
}

impl State {
    /// All records of the state, the meta record first. Events are the window's (`History::records`).
    pub fn records(&self) -> impl Iterator<Item = StateRecord> + '_ {
        let meta = std::iter::once(state_record::Kind::Meta(self.meta()));
        let objects = self.objects().map(|object| state_record::Kind::Object((**object).clone()));
        let leases = self.leases().map(state_record::Kind::Lease);
        let sessions =
            self.sessions().map(|(client, header)| state_record::Kind::Session(self.whole_session(client, *header)));
        let access = self.access("").map(|(_, record)| state_record::Kind::Access((**record).clone()));
        meta.chain(objects).chain(leases).chain(sessions).chain(access).map(|kind| StateRecord { kind: Some(kind) })
    }

    /// A state of its records, in any order. Several session records of one client are joined, so that storage may keep
    /// a session's header and each of its writes apart. Event records are passed over.
    ///
    /// # Errors
    /// [`DecodeError`] if they are not a whole, consistent state.
    pub fn from_records(records: impl IntoIterator<Item = StateRecord>) -> Result<Self, DecodeError> {
        let mut meta: Option<StateMeta> = None;
        let mut objects = Vec::new();
        let mut leases = Vec::new();
        let mut sessions = Sessions::default();
        let mut access = Vec::new();
        for record in records {
            match record.kind.ok_or(DecodeError::UnknownRecord)? {
                state_record::Kind::Meta(_) if meta.is_some() => return Err(DecodeError::TwoMetas),
                state_record::Kind::Meta(it) => meta = Some(it),
                state_record::Kind::Object(object) => objects.push(Arc::new(object)),
                state_record::Kind::Lease(lease) => leases.push(lease),
                state_record::Kind::Session(session) => sessions.join(session),
                state_record::Kind::Access(record) => access.push(record),
                state_record::Kind::Event(_) => {}
            }
        }
        let meta = meta.ok_or(DecodeError::NoMeta)?;
        if meta.format_version > FORMAT_VERSION {
            return Err(DecodeError::Format(meta.format_version));
        }
        let mut state = Self::default();
        state.load_meta(&meta).map_err(|problems| {
            DecodeError::Settings(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?;
        for object in objects {
            state.load_object(object)?;
        }
        for lease in leases {
            state.put_lease(lease);
        }
        for record in access {
            let key = access_key(&record).ok_or(DecodeError::UnknownRecord)?;
            state.put_access(&key, Some(record));
        }
        sessions.load(&mut state);
        Ok(state)
    }

    fn load_object(&mut self, object: ObjectRef) -> Result<(), DecodeError> {
        let key = object.key();
        if object.kind.is_none() {
            return Err(DecodeError::UnknownRecord);
        }
        if self.get(&key).is_some() {
            return Err(DecodeError::Twice(key));
        }
        if object.metadata().revision > self.revision() {
            return Err(DecodeError::Future(key));
        }
        if let Some(service) = object.as_service() {
            let addresses_free =
                cluster_addresses(service).into_iter().all(|address| self.addresses().check(address).is_ok());
            let ports_free = node_ports(service).into_iter().all(|port| self.node_ports().is_free(port.into()));
            if !addresses_free || !ports_free {
                return Err(DecodeError::Taken(key));
            }
        }
        let ports = object.as_service().map(node_ports).unwrap_or_default();
        self.replace(&key, Some(object));
        if mutant::is_on(Mutant::PortsNotLoaded) {
            self.forget_ports(ports);
        }
        Ok(())
    }

    fn whole_session(&self, client: &str, header: SessionHeader) -> Session {
        let write =
            |(sequence, outcome): (u64, &Arc<Outcome>)| SessionWrite { sequence, outcome: Some((**outcome).clone()) };
        let writes = self.writes_of(client).map(write).collect();
        Session { client: client.to_owned(), last_used: header.last_used, writes, forgotten: header.forgotten }
    }
}

/// Session records being joined.
#[derive(Default)]
struct Sessions(BTreeMap<String, Session>);

impl Sessions {
    fn join(&mut self, session: Session) {
        let joined = self.0.entry(session.client.clone()).or_default();
        joined.last_used = joined.last_used.max(session.last_used);
        joined.forgotten = joined.forgotten.max(session.forgotten);
        joined.writes.extend(session.writes);
    }

    fn load(self, state: &mut State) {
        for (client, session) in self.0 {
            state.put_session(&client, SessionHeader { last_used: session.last_used, forgotten: session.forgotten });
            for write in session.writes {
                state.put_session_write((client.clone(), write.sequence), Arc::new(write.outcome.unwrap_or_default()));
            }
        }
    }
}
