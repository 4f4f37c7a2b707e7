//! Kubernetes' names (apimachinery's util/validation): labels, subdomains, qualified names, port names.

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit()
}

/// RFC 1123: at most 63 of a-z, 0-9 and '-', not at the ends.
#[must_use]
pub fn is_dns1123_label(name: &str) -> bool {
    name.len() <= 63 && well_formed_label(name)
}

fn well_formed_label(name: &str) -> bool {
    name.starts_with(lower) && name.ends_with(lower) && name.chars().all(|letter| lower(letter) || letter == '-')
}

/// RFC 1123: labels joined by dots, at most 253.
#[must_use]
pub fn is_dns1123_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(well_formed_label)
}

/// What is wrong with a label.
pub fn label_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 63 {
        problems.push(too_long(63));
    }
    if !well_formed_label(name) {
        problems.push(LABEL.to_owned());
    }
    problems
}

/// What is wrong with a subdomain.
pub fn subdomain_problems(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > 253 {
        problems.push(too_long(253));
    }
    if !name.split('.').all(well_formed_label) {
        problems.push(SUBDOMAIN.to_owned());
    }
    problems
}

fn well_formed_name(name: &str) -> bool {
    let end = |letter: char| letter.is_ascii_alphanumeric();
    name.starts_with(end) && name.ends_with(end) && name.chars().all(|letter| end(letter) || "-_.".contains(letter))
}

/// What is wrong with a qualified name: a name, or a subdomain, '/', and a name.
#[must_use]
pub fn qualified_name_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut parts = text.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let name = match (second, third) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(subdomain_problems(first).into_iter().map(|problem| format!("prefix part {problem}")));
            }
            name
        }
        (Some(_), Some(_)) => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63)));
    }
    if !well_formed_name(name) {
        problems.push(format!("name part {QUALIFIED}"));
    }
    problems
}

/// What is wrong with a label's value.
#[must_use]
pub fn label_value_problem(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some(too_long(63));
    }
    (!value.is_empty() && !well_formed_name(value)).then(|| LABEL_VALUE.to_owned())
}

/// What is wrong with a port's name (IANA, RFC 6335).
#[must_use]
pub fn port_name_problems(name: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 bytes");
    }
    if name.is_empty() || !name.chars().all(|letter| lower(letter) || letter == '-') {
        problems.push("must contain only alphanumeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.chars().any(|letter| letter.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen");
    }
    problems
}
