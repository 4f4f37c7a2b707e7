//! Namespaces.

use crate::v1::Namespace;

/// Every namespace carries its name as a label (KEP-2161).
pub fn default(namespace: &mut Namespace) {
    namespace.status.get_or_insert_default();
    if let Some(status) = &mut namespace.status
        && status.phase.is_empty()
    {
        status.phase = "Active".into();
    }
    if let Some(metadata) = &mut namespace.metadata
        && !metadata.name.is_empty()
    {
        metadata.labels.insert("kubernetes.io/metadata.name".into(), metadata.name.clone());
    }
}
