//! Which objects a command line means: KIND[,KIND] [NAME…], KIND/NAME…, or everything of a kind.

use crate::client::failure::Failure;
use crate::client::kinds::{ALL, Resource};

/// Objects that a command line names.
#[derive(Debug, Default, PartialEq)]
pub struct Targets {
    /// Objects by name, in the order given.
    pub named: Vec<(&'static Resource, String)>,
    /// Whole types, in the order given; empty if there are names.
    pub whole: Vec<&'static Resource>,
}

impl Targets {
    /// Parses positional arguments.
    ///
    /// # Errors
    /// kubectl's sentence.
    pub fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let slashed = arguments.iter().filter(|argument| argument.contains('/')).count();
        if slashed > 0 {
            if slashed < arguments.len() {
                return Err(Failure::local(
                    "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'fairlead get resource/<resource_name>' instead of 'fairlead get resource resource/<resource_name>'",
                ));
            }
            let named = arguments.iter().map(|argument| slashed_name(argument)).collect::<Result<_, _>>()?;
            return Ok(Self { named, whole: Vec::new() });
        }
        let Some((kinds, names)) = arguments.split_first() else { return Ok(Self::default()) };
        let whole = resources(kinds)?;
        if names.is_empty() {
            return Ok(Self { named: Vec::new(), whole });
        }
        if kinds.split(',').any(|kind| kind == "all") {
            return Err(Failure::local("you must specify only one resource"));
        }
        let named = whole.iter().flat_map(|resource| names.iter().map(|name| (*resource, name.clone()))).collect();
        Ok(Self { named, whole: Vec::new() })
    }

    /// True if nothing is named.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.whole.is_empty()
    }

    /// The one resource type; `None` if there are several or none.
    pub fn only(&self) -> Option<&'static Resource> {
        let mut resources = self.named.iter().map(|(resource, _)| *resource).chain(self.whole.iter().copied());
        let first = resources.next()?;
        resources.all(|resource| resource == first).then_some(first)
    }
}

/// The resource types of "svc,ep"; `all` is what Kubernetes' category of that name has.
fn resources(kinds: &str) -> Result<Vec<&'static Resource>, Failure> {
    let mut found: Vec<&'static Resource> = Vec::new();
    for kind in kinds.split(',').filter(|kind| !kind.is_empty()) {
        let more = if kind == "all" {
            ALL.into_iter().filter(|resource| resource.in_all).collect()
        } else {
            vec![Resource::parse(kind)?]
        };
        for resource in more {
            if !found.contains(&resource) {
                found.push(resource);
            }
        }
    }
    if found.is_empty() {
        Err(Failure::local(format!("the server doesn't have a resource type {kinds:?}")))
    } else {
        Ok(found)
    }
}

fn slashed_name(argument: &str) -> Result<(&'static Resource, String), Failure> {
    match argument.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') && !kind.contains(',') => {
            Ok((Resource::parse(kind)?, name.to_owned()))
        }
        _ => Err(Failure::local("arguments in resource/name form must have a single resource and name")),
    }
}

/// What to say if nothing is named and there is no -f.
pub fn required() -> Failure {
    Failure::local(
        "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Targets, Failure> {
        Targets::parse(&arguments.iter().map(|&one| one.to_owned()).collect::<Vec<_>>())
    }

    fn named(targets: &Targets) -> String {
        targets.named.iter().map(|(resource, name)| format!("{}/{name} ", resource.singular)).collect()
    }

    #[test]
    fn every_form_that_kubectl_takes() {
        assert_eq!(named(&parse(&["svc", "a", "b"]).unwrap()), "service/a service/b ");
        assert_eq!(named(&parse(&["svc,po", "a"]).unwrap()), "service/a pod/a ");
        assert_eq!(named(&parse(&["svc/a", "pods/b"]).unwrap()), "service/a pod/b ");
        let whole = |arguments: &[&str]| {
            parse(arguments).unwrap().whole.iter().map(|resource| resource.short).collect::<Vec<_>>()
        };
        assert_eq!(whole(&["svc,ep,svc"]), ["svc", "ep"]);
        assert_eq!(whole(&["all"]), ["po", "svc"]);
        assert!(parse(&[]).unwrap().is_empty());
        assert_eq!(parse(&["svc/a", "svc/b"]).unwrap().only().unwrap().short, "svc");
        assert!(parse(&["svc,po"]).unwrap().only().is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, says) in [
            (&["nope"] as &[&str], "the server doesn't have a resource type \"nope\""),
            (&["svc", "svc/a"], "there is no need to specify a resource type"),
            (&["svc/"], "must have a single resource and name"),
            (&["/a"], "must have a single resource and name"),
            (&["svc/a/b"], "must have a single resource and name"),
            (&[","], "resource type"),
            (&["all", "x"], "only one resource"),
        ] {
            assert!(parse(arguments).unwrap_err().text().contains(says), "{arguments:?}");
        }
    }
}
