//! Reads what `iptables-save` prints. Total: a rule that ours never look like is kept as text only.

use crate::plan::iptables::observed::{Line, Observed};
use crate::plan::iptables::rule::{Net, Recent, Rule, States, Target, parse_probability};
use crate::plan::iptables::{Names, Space};
use crate::plan::service::Protocol;
use ipnet::IpNet;
use std::net::IpAddr;

/// Adds one table's dump (`iptables-save -t TABLE`) to an observation.
pub fn save(observed: &mut Observed, space: Space, text: &str, names: &Names) {
    let wanted = |chain: &str| names.owns(chain) || Observed::is_built_in(chain);
    let chains = observed.chains.entry(space).or_default();
    for line in text.lines() {
        if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            observed.canary |= chain == names.canary();
            if wanted(chain) {
                chains.entry(chain.to_owned()).or_default();
            }
        } else if let Some((chain, text)) =
            line.strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
            && wanted(chain)
        {
            let line = Line { rule: rule(text), text: text.to_owned() };
            chains.entry(chain.to_owned()).or_default().push(line);
        }
    }
}

/// One rule: everything behind `-A CHAIN `. `None`: no rule of ours says that.
#[must_use]
pub fn rule(text: &str) -> Option<Rule> {
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str);
    let mut rule = Rule::default();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        if negated && !matches!(word, "-s" | "-d" | "--mark") {
            return None;
        }
        match word {
            "-j" => target(&mut rule, &mut words)?,
            "-m" => module(words.next()?)?,
            _ => matching(&mut rule, (word, negated), &mut words)?,
        }
        negated = false;
    }
    (!negated).then_some(rule)
}

fn matching<'a>(
    rule: &mut Rule,
    (word, negated): (&str, bool),
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<()> {
    match word {
        "-s" => rule.source = Some(Net { negated, net: net(words.next()?)? }),
        "-d" => rule.destination = Some(Net { negated, net: net(words.next()?)? }),
        "-p" => rule.protocol = Some(protocol(words.next()?)?),
        "--comment" => rule.comment = Some(words.next()?.to_owned()),
        "--dport" => rule.destination_port = Some(words.next()?.parse().ok()?),
        "--src-type" => rule.source_local = local(words.next()?)?,
        "--dst-type" => rule.destination_local = local(words.next()?)?,
        "--ctstate" => rule.states = Some(states(words.next()?)?),
        "--mark" => {
            let (value, mask) = value_and_mask(words.next()?)?;
            rule.mark = Some((value, mask, negated));
        }
        "--mode" => return (words.next()? == "random").then_some(()),
        "--probability" => rule.probability = Some(parse_probability(words.next()?)?),
        "--set" => rule.recent = Some(Recent::Set(String::new())),
        "--rcheck" => rule.recent = Some(Recent::Check(String::new(), 0)),
        "--name" => match rule.recent.as_mut()? {
            Recent::Set(list) | Recent::Check(list, _) => words.next()?.clone_into(list),
        },
        "--seconds" => match rule.recent.as_mut()? {
            Recent::Check(_, seconds) => *seconds = words.next()?.parse().ok()?,
            Recent::Set(_) => return None,
        },
        "--reap" | "--rsource" => return rule.recent.as_ref().map(|_| ()),
        "--mask" => {
            let all = matches!(words.next()?, "255.255.255.255" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
            return all.then_some(());
        }
        _ => return None,
    }
    Some(())
}

fn target<'a>(rule: &mut Rule, words: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    rule.target = match words.next()? {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "RETURN" => Target::Return,
        "REJECT" => match (words.next(), words.next()) {
            (None, _) | (Some("--reject-with"), Some("icmp-port-unreachable" | "icmp6-port-unreachable")) => {
                Target::Reject
            }
            (Some("--reject-with"), Some("tcp-reset")) => Target::Reset,
            _ => return None,
        },
        "MASQUERADE" => (words.next()? == "--random-fully").then_some(Target::Masquerade)?,
        "DNAT" => {
            let endpoint = words.next().filter(|word| *word == "--to-destination").and_then(|_| words.next());
            Target::Dnat(endpoint?.parse().ok()?)
        }
        "MARK" => {
            let (value, mask) =
                words.next().filter(|word| *word == "--set-xmark").and_then(|_| value_and_mask(words.next()?))?;
            Target::Mark { value, mask }
        }
        chain => Target::Jump(chain.to_owned()),
    };
    // A target is a rule's last word; what follows would be an option that ours never have.
    words.next().is_none().then_some(())
}

fn module(name: &str) -> Option<()> {
    matches!(name, "comment" | "tcp" | "udp" | "sctp" | "mark" | "conntrack" | "statistic" | "recent" | "addrtype")
        .then_some(())
}

fn local(text: &str) -> Option<bool> {
    (text == "LOCAL").then_some(true)
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        "sctp" | "132" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn states(text: &str) -> Option<States> {
    let mut states = States::default();
    for name in text.split(',') {
        match name {
            "NEW" => states.new = true,
            "ESTABLISHED" => states.established = true,
            "RELATED" => states.related = true,
            "INVALID" => states.invalid = true,
            _ => return None,
        }
    }
    Some(states)
}

fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    Some((number(value)?, number(mask)?))
}

/// Splits at spaces; `"…"` is one word, in which `\` escapes.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.peek().copied() {
        if first == ' ' {
            chars.next();
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            chars.next();
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => word.push(chars.next()?),
                    other => word.push(other),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ' ') {
                word.push(c);
            }
        }
        words.push(word);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Family;
    use crate::plan::iptables::Table;

    /// As iptables-nft-save and iptables-legacy-save 1.8.9 printed them.
    const SAVED: &str = r#"# Generated by iptables-nft-save v1.8.9 (nf_tables) on Tue Nov 24 14:29:25 2026
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A DOCKER -i docker0 -j RETURN
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-MNKVGFJKVZSSJG7K -s 10.244.1.2/32 -m comment --comment "default/nginx-service" -j KUBE-MARK-MASQ
-A KUBE-SEP-MNKVGFJKVZSSJG7K -p tcp -m comment --comment "default/nginx-service" -m recent --set --name KUBE-SEP-MNKVGFJKVZSSJG7K --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.1.2:80
-A KUBE-SERVICES -d 10.96.0.10/32 -p sctp -m comment --comment "default/nginx-service cluster IP" -m sctp --dport 80 -j KUBE-SVC-V2OKYYMBY3REGZOG
-A KUBE-SERVICES ! -d 127.0.0.0/8 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-V2OKYYMBY3REGZOG ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "default/nginx-service cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-V2OKYYMBY3REGZOG -m comment --comment "default/nginx-service -> 10.244.1.2:80" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-MNKVGFJKVZSSJG7K --mask 255.255.255.255 --rsource -j KUBE-SEP-MNKVGFJKVZSSJG7K
-A KUBE-SVC-V2OKYYMBY3REGZOG -m comment --comment "default/nginx-service -> 10.244.1.2:80" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-MNKVGFJKVZSSJG7K
COMMIT
"#;

    #[test]
    fn every_rule_of_ours_is_understood_and_renders_to_itself() {
        let names = Names::new("KUBE").unwrap();
        let space = Space::new(Family::V4, Table::Nat);
        let mut observed = Observed::default();
        save(&mut observed, space, SAVED, &names);
        assert!(!observed.has(space, "DOCKER"), "foreign chains are not even looked at");
        let lines: Vec<_> = observed.chains[&space].values().flatten().collect();
        assert_eq!(lines.len(), 12);
        for line in lines {
            let parsed = line.rule.as_ref().unwrap_or_else(|| panic!("{}", line.text));
            assert_eq!(rule(&parsed.to_string()).as_ref(), Some(parsed), "{}", line.text);
        }
    }

    #[test]
    fn what_ours_never_say_is_kept_as_text() {
        for text in [
            "-i eth0 -j ACCEPT",
            "-p tcp -m tcp --sport 5 -j ACCEPT",
            "-j DNAT --to-destination 10.0.0.1:80-90",
            "-j REJECT --reject-with icmp-host-prohibited",
            "! -p tcp -j DROP",
            "-m comment --comment \"open",
            "-j LOG --log-prefix x",
            "-m nonsense",
            "-j",
        ] {
            assert_eq!(rule(text), None, "{text}");
        }
    }
}
