//! What apply, create and replace share: flags, and one document's way to the servers.

use super::{DryRun, Subresource, Validate, report, warn};
use crate::client::Session;
use crate::client::failure::Failure;
use crate::client::files::Document;
use crate::client::kinds::Resource;
use crate::client::output::{Format, Shown, text};
use clap::Args;
use fairlead_proto::manifest;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{
    ApplyRequest, CreateRequest, Input, Object, ObjectResponse, Problem, UpdateRequest, WriteEffect, WriteOptions,
    input,
};
use serde_json::Value;

/// Flags of verbs that write manifests.
#[derive(Args, Clone, Debug, Default)]
pub struct WriteArgs {
    /// Only try
    #[arg(long, value_enum, default_value = "none", num_args = 0..=1, require_equals = true, default_missing_value = "client", value_name = "MODE")]
    pub dry_run: DryRun,
    /// What to do with fields that Kubernetes' schema doesn't have
    #[arg(long, value_enum, default_value = "strict", num_args = 0..=1, require_equals = true, default_missing_value = "strict", value_name = "MODE")]
    pub validate: Validate,
    /// Print the object: json, yaml, name, jsonpath=…, custom-columns=…
    #[arg(short, long)]
    pub output: Option<String>,
}

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Three-way merge, or create.
    Apply,
    /// Must not exist.
    Create,
    /// Must exist.
    Replace,
}

/// One verb's run over documents.
pub struct Writing<'a> {
    /// Servers and namespace.
    pub session: &'a Session,
    /// How.
    pub how: How,
    /// Flags.
    pub args: &'a WriteArgs,
    /// Write the status.
    pub subresource: Option<Subresource>,
}

impl Writing<'_> {
    /// Writes every document; the highest revision of them. One that fails doesn't stop the others.
    ///
    /// # Errors
    /// All failures.
    pub async fn all(&self, documents: Vec<Document>) -> Result<u64, Failure> {
        let format = Format::parse(self.args.output.as_deref())?;
        let (mut revision, mut failures) = (0, Vec::new());
        for document in documents {
            match self.one(&document, &format).await {
                Ok(reached) => revision = revision.max(reached),
                Err(failure @ (Failure::Connection(_) | Failure::Silent)) => {
                    // No other document would fare better.
                    failures.push(failure);
                    break;
                }
                Err(failure) => failures.push(failure),
            }
        }
        Failure::all(failures).map(|()| revision)
    }

    async fn one(&self, document: &Document, format: &Format) -> Result<u64, Failure> {
        let (resource, key) = document.identify(self.session)?;
        if self.args.dry_run == DryRun::Client {
            let (shown, done) = self.pretend(document, resource, &key).await?;
            return report(shown, &format!("{done}{}", DryRun::Client.suffix()), format).map(|()| 0);
        }
        let verb = match self.how {
            How::Apply => "applying",
            How::Create => "creating",
            How::Replace => "replacing",
        };
        let answer = self.send(&document.value).await.map_err(|failure| failure.at_source(verb, &document.source))?;
        warn(&answer.warnings);
        let done = match (self.how, answer.effect()) {
            (How::Create, _) | (How::Apply, WriteEffect::Created) => "created",
            (How::Replace, _) => "replaced",
            (How::Apply, WriteEffect::Unchanged) => "unchanged",
            (How::Apply, _) => "configured",
        };
        let value = manifest::render(&answer.object.unwrap_or_default());
        report(Shown { resource, value }, &format!("{done}{}", self.args.dry_run.suffix()), format)?;
        Ok(answer.revision)
    }

    /// Sends a manifest.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send(&self, value: &Value) -> Result<ObjectResponse, Failure> {
        let input = Some(Input { form: Some(input::Form::ManifestJson(value.to_string())) });
        let options = Some(WriteOptions {
            request_id: None,
            dry_run: self.args.dry_run == DryRun::Server,
            field_validation: self.args.validate.to_wire(),
            default_namespace: self.session.namespace.clone(),
            status: self.subresource.is_some(),
        });
        match self.how {
            How::Apply => self.session.servers.apply(ApplyRequest { input, options }).await,
            How::Create => self.session.servers.create(CreateRequest { input, options }).await,
            How::Replace => self.session.servers.update(UpdateRequest { input, options }).await,
        }
    }

    /// What would be sent, and what it would do, without asking a server to do it.
    async fn pretend(
        &self,
        document: &Document,
        resource: &'static Resource,
        key: &Key,
    ) -> Result<(Shown, &'static str), Failure> {
        let decoded = manifest::decode(&document.value).map_err(|problems| {
            let causes = problems.iter().map(fairlead_proto::model::Invalid::to_wire).collect();
            let message = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Failure::Server(Box::new(Problem {
                reason: "Invalid".into(),
                message,
                causes,
                key: Some(key.to_wire()),
                ..Problem::default()
            }))
        })?;
        let unknown: Vec<String> = decoded.unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
        match self.args.validate {
            Validate::Strict if !unknown.is_empty() => {
                return Err(Failure::local(format!(
                    "error validating {:?}: strict decoding error: {}",
                    document.source,
                    unknown.join(", ")
                )));
            }
            Validate::Warn => warn(&unknown),
            _ => {}
        }
        let mut value = manifest::render(&decoded.object);
        if resource.is_namespaced() && text(&value, "/metadata/namespace").is_empty() {
            value["metadata"]["namespace"] = key.namespace.clone().into();
        }
        let shown = Shown { resource, value };
        match self.how {
            How::Create => Ok((shown, "created")),
            How::Replace => self.session.object(key).await.map(|_| (shown, "replaced")),
            How::Apply => match self.session.object(key).await {
                Ok(live) => {
                    Ok((shown.clone(), if would_change(&live, &shown.value) { "configured" } else { "unchanged" }))
                }
                Err(failure) if failure.is_not_found() => Ok((shown, "created")),
                Err(failure) => Err(failure),
            },
        }
    }
}

/// True if an apply of the manifest would change the live object.
fn would_change(live: &Object, value: &Value) -> bool {
    let last: Option<Value> = serde_json::from_str(&live.metadata().last_applied).ok();
    let live = manifest::render(live);
    manifest::three_way(last.as_ref(), &live, value) != live
}
