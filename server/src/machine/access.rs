//! Who may do what, as the cluster keeps it: authorities, join tokens and bindings. Records beside the objects: nobody
//! lists or watches them, and they take no revision.

use crate::machine::draft::Draft;
use crate::machine::{Done, outcome};
use fairlead_proto::internal::v1::{
    AccessRecord, DeleteAccess, JoinToken, PutAccess, Rejection, UseToken, access_record, rejection::Code,
};
use fairlead_proto::model::Invalid;
use fairlead_proto::v1::WriteEffect;

/// Keys of authorities begin so.
pub const AUTHORITIES: &str = "authority/";
/// Keys of join tokens.
pub const TOKENS: &str = "token/";
/// Keys of bindings.
pub const BINDINGS: &str = "binding/";
/// Records of one sort at most.
const MOST: usize = 1_000;

/// Key of a record; `None` = of a sort that this program doesn't know.
#[must_use]
pub fn access_key(record: &AccessRecord) -> Option<String> {
    Some(match record.kind.as_ref()? {
        access_record::Kind::Authority(it) => format!("{AUTHORITIES}{}/{:010}", it.purpose, it.generation),
        access_record::Kind::Token(it) => token_key(&it.id),
        access_record::Kind::Binding(it) => format!("{BINDINGS}{}/{}", it.subject, it.namespace),
    })
}

/// Key of a join token.
#[must_use]
pub fn token_key(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// Writes a record.
pub(super) fn put(draft: &mut Draft<'_>, put: &PutAccess) -> Result<Done, Rejection> {
    let record = put.record.clone().unwrap_or_default();
    let key = access_key(&record).ok_or_else(|| outcome::invalid_command(&[Invalid::required("record", "")]))?;
    let old = draft.state.access_record(&key).cloned();
    if old.is_some() && put.create {
        return Err(refused(Code::AlreadyExists, format!("{key} already exists")));
    }
    if old.as_deref() == Some(&record) {
        return Ok(Done::configured(false));
    }
    let sort = key.split_inclusive('/').next().unwrap_or_default();
    if old.is_none() && draft.state.access(sort).count() >= MOST {
        return Err(refused(Code::Exhausted, format!("there are {MOST} records of {sort} already: delete some")));
    }
    draft.put_access(&key, Some(record));
    Ok(Done::effect(if old.is_some() { WriteEffect::Configured } else { WriteEffect::Created }))
}

/// Removes a record. An authority that signs stays.
pub(super) fn delete(draft: &mut Draft<'_>, delete: &DeleteAccess) -> Result<Done, Rejection> {
    if draft.state.access_record(&delete.key).is_none() {
        return Err(refused(Code::NotFound, format!("{} not found", delete.key)));
    }
    if let Some((purpose, _)) = delete.key.strip_prefix(AUTHORITIES).and_then(|rest| rest.split_once('/')) {
        let newest = draft.state.access(&format!("{AUTHORITIES}{purpose}/")).last().map(|(key, _)| key.clone());
        if newest.as_deref() == Some(delete.key.as_str()) {
            return Err(refused(Code::Forbidden, format!("{} signs: make a newer one first", delete.key)));
        }
    }
    draft.put_access(&delete.key, None);
    Ok(Done::effect(WriteEffect::Deleted))
}

/// Notes that somebody joined. Of two who use a single-use token at once one is refused, whichever servers they ask.
pub(super) fn use_token(draft: &mut Draft<'_>, using: &UseToken) -> Result<Done, Rejection> {
    let key = token_key(&using.id);
    let unknown = || refused(Code::NotFound, "the join token is not known: it was used up or deleted".to_owned());
    let record = draft.state.access_record(&key).ok_or_else(unknown)?;
    let Some(access_record::Kind::Token(token)) = &record.kind else {
        return Err(unknown());
    };
    if token.secret_hash != using.secret_hash {
        return Err(unknown());
    }
    let used = JoinToken { used_by: using.by.clone(), uses: token.uses.saturating_add(1), ..token.clone() };
    let left = !token.single_use;
    draft.put_access(&key, left.then_some(AccessRecord { kind: Some(access_record::Kind::Token(used)) }));
    Ok(Done::configured(true))
}

fn refused(code: Code, message: String) -> Rejection {
    Rejection { code: code as i32, message, causes: Vec::new(), key: None }
}
