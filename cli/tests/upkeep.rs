//! What every server does for its own disk: it refuses what would fill it, says so, and keeps backups by the clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use common::{Cluster, eventually, service, text};
use std::os::unix::fs::PermissionsExt as _;

/// A service of some 200 KB.
fn large(name: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"default","annotations":{{"x":"{}"}}}},"spec":{{"ports":[{{"port":80}}]}}}}"#,
        "y".repeat(200_000)
    )
}

fn alarms(cluster: &Cluster) -> Vec<String> {
    let status = cluster.status();
    status["alarms"].as_array().unwrap().iter().map(|alarm| alarm.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_full_store_takes_only_deletions_and_has_room_again_after_them() {
    let mut cluster = Cluster::prepare(3);
    cluster.flags = vec!["--quota-mib".into(), "1".into()];
    cluster.start_all();
    let names: Vec<String> = (0..40).map(|index| format!("large-{index}")).collect();
    let refused = names.iter().find_map(|name| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let output = cluster.run(&["apply", "-f", "-"], &large(name));
        (!output.status.success()).then(|| text(&output.stderr))
    });
    let refused = refused.expect("a quota of 1 MiB takes 40 objects of 200 KB");
    assert!(refused.contains("no room for more") && refused.contains("--quota-mib"), "{refused}");
    let said = alarms(&cluster);
    assert!(said.len() == 1 && said[0].contains("only deleting is possible"), "{said:?}");
    // What is there is served and can be deleted.
    cluster.ok(&["get", "service", "large-0"], "");
    // All of them: on a busy machine more got in than the quota, before it was noticed.
    for name in &names {
        cluster.run(&["delete", "service", name], "");
    }
    eventually("room", || cluster.run(&["apply", "-f", "-"], &service("web")).status.success().then_some(()));
    eventually("no alarm", || alarms(&cluster).is_empty().then_some(()));
}

#[test]
fn a_disk_that_is_nearly_full_takes_nothing_more_and_says_so() {
    let mut cluster = Cluster::prepare(1);
    // More than any disk has.
    cluster.flags = vec!["--min-free-mib".into(), (1_u64 << 40).to_string()];
    cluster.start_all();
    let refused = eventually("a refusal", || {
        let output = cluster.run(&["apply", "-f", "-"], &service("web"));
        (!output.status.success()).then(|| text(&output.stderr))
    });
    assert!(refused.contains("n1 have less than") && refused.contains("--min-free-mib"), "{refused}");
    let said = alarms(&cluster);
    assert!(said.iter().any(|alarm| alarm.starts_with("n1 has ")), "{said:?}");
    assert!(text(&cluster.run(&["status"], "").stdout).contains("ALARM: n1 has "));
}

#[test]
fn backups_are_made_by_the_clock_and_the_oldest_go() {
    let mut cluster = Cluster::prepare(1);
    let folder = cluster.dir.path().join("backups");
    cluster.flags = ["--backup-dir", folder.to_str().unwrap(), "--backup-every", "1s", "--backup-keep", "2"]
        .map(str::to_owned)
        .to_vec();
    cluster.start_all();
    let list = || {
        let names = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut whole: Vec<_> = names.filter(|path| path.extension().is_some_and(|end| end == "snapshot")).collect();
        whole.sort();
        whole
    };
    let mut seen = std::collections::BTreeSet::new();
    let newest = eventually("four backups of four states", || {
        cluster.ok(&["apply", "-f", "-"], &service(&format!("web-{}", seen.len())));
        seen.extend(list());
        std::thread::sleep(std::time::Duration::from_millis(400));
        assert!(list().len() <= 3, "one more for a moment, before the oldest goes");
        (seen.len() >= 4).then(|| list().pop().unwrap())
    });
    assert_eq!(std::fs::metadata(&newest).unwrap().permissions().mode() & 0o777, 0o600);
    let said = cluster.ok(&["snapshot", "status", newest.to_str().unwrap()], "");
    assert!(said.contains(" services") && said.contains("state digest"), "{said}");
    // A folder that can't be written to is said.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    eventually("an alarm", || {
        let alarms = alarms(&cluster);
        alarms.iter().any(|alarm| alarm.contains("n1: no backup can be made in")).then_some(())
    });
    std::fs::remove_file(&folder).unwrap();
    eventually("no alarm", || alarms(&cluster).is_empty().then_some(()));
    // Flags that say nothing are refused.
    cluster.flags = vec!["--backup-keep".into(), "3".into()];
    let refused = cluster.server_command(0).output().unwrap();
    assert!(text(&refused.stderr).contains("without --backup-dir"), "{}", text(&refused.stderr));
}

#[test]
fn a_debug_file_says_how_every_server_is_and_no_secret() {
    let mut cluster = Cluster::start_secure(3, &[]);
    let token = cluster.ok(&["token", "create", "--role", "agent"], "");
    let secret = token.split_whitespace().last().unwrap().to_owned();
    cluster.ok(&["apply", "-f", "-"], &service("web"));
    cluster.ok(&["annotate", "service", "web", "note=between-us"], "");
    cluster.servers[2].as_mut().unwrap().kill_9();
    let file = cluster.dir.path().join("debug.json");
    let path = file.to_str().unwrap();
    cluster.ok(&["debug", "--file", path], "");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = std::fs::read_to_string(&file).unwrap();
    for hidden in ["PRIVATE KEY", "between-us", &secret] {
        assert!(!written.contains(hidden), "{hidden} is in it");
    }
    let bundle: serde_json::Value = serde_json::from_str(&written).unwrap();
    let servers = bundle["servers"].as_array().unwrap();
    assert_eq!(servers.len(), 3);
    for server in &servers[..2] {
        assert_eq!(server["objects"]["services"], 1, "{server}");
        assert!(server["settings"]["tls"].is_object() && server["raft"].as_str().unwrap().contains("term"));
        assert!(
            server["metrics"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().starts_with("fairlead_"))
        );
    }
    // What can't be asked is said, and nothing is written over.
    assert!(servers[2]["error"].is_string(), "{}", servers[2]);
    let again = cluster.run(&["debug", "--file", path], "");
    assert!(!again.status.success() && text(&again.stderr).contains("exists"), "{}", text(&again.stderr));
}
