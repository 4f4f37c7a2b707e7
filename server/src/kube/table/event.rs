//! Rows of events.

use crate::kube::table::{age, at, name, number, text, text_or};
use serde_json::Value;

pub(super) fn event(object: &Value, now: i64) -> Vec<Value> {
    let text = |path: &[&str]| text(object, path);
    // Who reports in the newer way has one time, and a series if it happened again.
    let first = Some(text(&["firstTimestamp"])).filter(|time| !time.is_empty()).unwrap_or(text(&["eventTime"]));
    let last = Some(text(&["lastTimestamp"])).filter(|time| !time.is_empty()).unwrap_or(first);
    let (last, count) = match at(object, &["series"]) {
        Value::Object(_) => (text(&["series", "lastObservedTime"]), number(object, &["series", "count"])),
        _ => (last, number(object, &["count"]).max(1)),
    };
    vec![
        age(last, now).into(),
        text(&["type"]).into(),
        text(&["reason"]).into(),
        about(object).into(),
        text(&["involvedObject", "fieldPath"]).into(),
        source(object).into(),
        text(&["message"]).trim().into(),
        age(first, now).into(),
        count.to_string().into(),
        name(object),
    ]
}

fn about(object: &Value) -> String {
    let kind = text(object, &["involvedObject", "kind"]).to_lowercase();
    match text(object, &["involvedObject", "name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(object: &Value) -> String {
    let component = text_or(object, &["source", "component"], text(object, &["reportingComponent"]));
    match text_or(object, &["source", "host"], text(object, &["reportingInstance"])) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}
