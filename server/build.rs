//! The definitions of Kubernetes' objects, as its client library has them with every field's documentation, for
//! `src/kube/openapi`. Made here and not in the program: the library's schemas would triple the time that it takes to build.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SelfSubjectRulesReview};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Event, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Patch, Status};
use schemars::generate::SchemaSettings;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let settings = SchemaSettings::draft07().with(|one| one.definitions_path = "/definitions".into());
    let mut generator = settings.into_generator();
    macro_rules! each {
        ($($kind:ty),*) => { $( generator.subschema_for::<$kind>(); )* };
    }
    each!(Endpoints, Event, Namespace, Node, Pod, Service, EndpointSlice, Lease, IPAddress, ServiceCIDR);
    each!(SelfSubjectAccessReview, SelfSubjectRulesReview, SelfSubjectReview, DeleteOptions, ListMeta, Patch, Status);
    let mut all: Vec<_> = generator.take_definitions(true).into_iter().collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let all: serde_json::Map<String, serde_json::Value> = all.into_iter().collect();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    Ok(fs::write(out.join("definitions.json"), serde_json::to_vec(&all)?)?)
}
