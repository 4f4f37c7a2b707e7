//! Readiness probes (kubelet's fields).

use crate::convert::{ip, names};
use crate::model::Invalid;
use crate::v1::{IntOrString, Probe, int_or_string};

/// kubelet's defaults.
pub fn default(probe: &mut Probe) {
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if *field == 0 {
            *field = value;
        }
    }
    if let Some(http) = &mut probe.http_get {
        if http.path.is_empty() {
            http.path = "/".into();
        }
        if http.scheme.is_empty() {
            http.scheme = "HTTP".into();
        }
    }
}

/// Exactly one handler, and sane numbers.
pub fn validate(field: &str, probe: &Probe, problems: &mut Vec<Invalid>) {
    let handlers = [
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
        ("grpc", probe.grpc.is_some()),
        ("exec", probe.exec.is_some()),
    ];
    let given: Vec<&str> = handlers.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match given.as_slice() {
        [] => problems.push(Invalid::required(field, "must specify a handler type")),
        [_] => {}
        [_, more @ ..] => {
            problems.extend(
                more.iter().map(|name| {
                    Invalid::forbidden(format!("{field}.{name}"), "may not specify more than 1 handler type")
                }),
            );
        }
    }
    for (name, number) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if number < 0 {
            problems.push(Invalid::invalid(format!("{field}.{name}"), number, "must be greater than or equal to 0"));
        }
    }
    handler(field, probe, problems);
}

fn handler(field: &str, probe: &Probe, problems: &mut Vec<Invalid>) {
    if let Some(http) = &probe.http_get {
        if http.path.is_empty() {
            problems.push(Invalid::required(format!("{field}.httpGet.path"), ""));
        }
        port(&format!("{field}.httpGet.port"), http.port.as_ref(), problems);
        if !["HTTP", "HTTPS"].contains(&http.scheme.as_str()) {
            problems.push(Invalid::not_supported(format!("{field}.httpGet.scheme"), &http.scheme, &["HTTP", "HTTPS"]));
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        port(&format!("{field}.tcpSocket.port"), tcp.port.as_ref(), problems);
    }
    if let Some(grpc) = &probe.grpc
        && !(1..=65_535).contains(&grpc.port)
    {
        problems.push(Invalid::invalid(
            format!("{field}.grpc.port"),
            grpc.port,
            "must be between 1 and 65535, inclusive",
        ));
    }
    if let Some(exec) = &probe.exec
        && exec.command.is_empty()
    {
        problems.push(Invalid::required(format!("{field}.exec.command"), ""));
    }
}

/// A port by number or by name.
pub fn port(field: &str, port: Option<&IntOrString>, problems: &mut Vec<Invalid>) {
    match port.and_then(|port| port.value.as_ref()) {
        Some(int_or_string::Value::Int(number)) if (1..=65_535).contains(number) => {}
        Some(int_or_string::Value::Int(number)) => {
            problems.push(Invalid::invalid(field, *number, "must be between 1 and 65535, inclusive"))
        }
        Some(int_or_string::Value::Str(name)) => {
            problems.extend(
                names::port_name_problems(name).into_iter().map(|problem| Invalid::invalid(field, name, problem)),
            );
        }
        None => problems.push(Invalid::required(field, "")),
    }
}

/// An address of a pod's status.
pub fn pod_address(field: &str, text: &str, problems: &mut Vec<Invalid>) -> Option<std::net::IpAddr> {
    ip::check(field, text, problems)
}
