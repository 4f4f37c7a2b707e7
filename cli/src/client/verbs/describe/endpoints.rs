//! Endpoints in detail, as v1 Endpoints and as EndpointSlices.

use super::{head, joined, or_none};
use crate::client::output::{items, number, text};
use crate::client::table::Description;
use serde_json::Value;

/// A v1 Endpoints object.
pub fn endpoints(value: &Value, into: &mut Description) {
    head(value, into);
    into.line("Subsets:");
    for subset in items(value, "/subsets") {
        let list = |pointer: &str| {
            let addresses: Vec<&str> = items(subset, pointer).iter().map(|address| text(address, "/ip")).collect();
            or_none(&addresses.join(",")).to_owned()
        };
        into.line(format!("  Addresses:\t{}", list("/addresses")));
        into.line(format!("  NotReadyAddresses:\t{}", list("/notReadyAddresses")));
        if !items(subset, "/ports").is_empty() {
            into.line("  Ports:");
            into.line("    Name\tPort\tProtocol");
            into.line("    ----\t----\t--------");
            for port in items(subset, "/ports") {
                let name = if text(port, "/name").is_empty() { "<unset>" } else { text(port, "/name") };
                into.line(format!("    {name}\t{}\t{}", number(port, "/port"), text(port, "/protocol")));
            }
        }
        into.line("");
    }
}

/// An EndpointSlice.
pub fn slice(value: &Value, into: &mut Description) {
    let unset = |text: &str| if text.is_empty() { "<unset>".to_owned() } else { text.to_owned() };
    head(value, into);
    into.field("AddressType", text(value, "/addressType"));
    if items(value, "/ports").is_empty() {
        into.field("Ports", "<unset>");
    } else {
        into.line("Ports:");
        into.line("  Name\tPort\tProtocol");
        into.line("  ----\t----\t--------");
        for port in items(value, "/ports") {
            into.line(format!(
                "  {}\t{}\t{}",
                unset(text(port, "/name")),
                number(port, "/port"),
                text(port, "/protocol")
            ));
        }
    }
    if items(value, "/endpoints").is_empty() {
        into.field("Endpoints", "<none>");
        return;
    }
    into.line("Endpoints:");
    for endpoint in items(value, "/endpoints") {
        into.line(format!("  - Addresses:\t{}", joined(items(endpoint, "/addresses"))));
        into.line("    Conditions:");
        into.line(format!("      Ready:\t{}", endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false))));
        into.line(format!("    Hostname:\t{}", unset(text(endpoint, "/hostname"))));
        if let Some(target) = endpoint.get("targetRef") {
            into.line(format!("    TargetRef:\t{}/{}", text(target, "/kind"), text(target, "/name")));
        }
        into.line(format!("    NodeName:\t{}", unset(text(endpoint, "/nodeName"))));
        into.line(format!("    Zone:\t{}", unset(text(endpoint, "/zone"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_read_as_kubectl_describes_them() {
        let value = json!({"metadata": {"name": "web", "namespace": "default", "labels": {"m": "x"}}, "subsets": [{
            "addresses": [{"ip": "10.244.0.1"}, {"ip": "10.244.0.2"}], "notReadyAddresses": [{"ip": "10.244.0.3"}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}]});
        let mut into = Description::default();
        endpoints(&value, &mut into);
        assert_eq!(
            into.render(),
            "Name:         web
Namespace:    default
Labels:       m=x
Annotations:  <none>
Subsets:
  Addresses:          10.244.0.1,10.244.0.2
  NotReadyAddresses:  10.244.0.3
  Ports:
    Name     Port  Protocol
    ----     ----  --------
    http     8080  TCP
    <unset>  53    UDP

"
        );
        let value = json!({"metadata": {"name": "web-abc", "namespace": "default"}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.0.1"], "conditions": {"ready": true}, "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p1"}}]});
        let mut into = Description::default();
        slice(&value, &mut into);
        assert_eq!(
            into.render(),
            "Name:         web-abc
Namespace:    default
Labels:       <none>
Annotations:  <none>
AddressType:  IPv4
Ports:
  Name  Port  Protocol
  ----  ----  --------
  http  8080  TCP
Endpoints:
  - Addresses:  10.244.0.1
    Conditions:
      Ready:    true
    Hostname:   <unset>
    TargetRef:  Pod/p1
    NodeName:   n1
    Zone:       <unset>
"
        );
    }
}
