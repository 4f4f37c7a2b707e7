//! Mistakes that systems of this kind have made, each with the tests that would show it here. The table is the list; a test
//! keeps it true.
//!
//! | # | mistake | what it would do |
//! |---|---|---|
//! | 1 | apply without a request id's memory | a retry creates or allocates twice |
//! | 2 | a write that timed out is sent again as a new one | a lost update |
//! | 3 | a read without asking a quorum | an old leader answers with old data |
//! | 4 | a read joins a round that began before it | the same, now and then |
//! | 5 | reads before the term's first entry is committed | old data after an election |
//! | 6 | a read waits for the index and not for its application | a follower answers with old data |
//! | 7 | reads by lease, and a clock that is wrong | old data |
//! | 8 | a revision that is not a function of the log | revisions differ or go back |
//! | 9 | the revision is not in the snapshot | it begins anew after an install |
//! | 10 | the pools are not in the snapshot | an address is given twice |
//! | 11 | request ids are not in the snapshot, or forgotten by a clock | a retry is executed twice |
//! | 12 | allocation and object in two entries | an address leaks or is given twice |
//! | 13 | clock, randomness or ids made inside apply | members differ |
//! | 14 | unordered maps inside apply | members differ |
//! | 15 | members of different versions apply different rules | members differ |
//! | 16 | apply panics on bad input | every member crashes, again and again |
//! | 17 | followers or readers decide that a lease is over | members differ |
//! | 18 | a new leader expires every lease | all endpoints flap |
//! | 19 | a watch begins beside a write | an event is lost or comes twice |
//! | 20 | a watch goes on over an installed snapshot | events are lost |
//! | 21 | a watch resumes at a server that is behind | it goes back in time |
//! | 22 | a bookmark overtakes events | they are lost on resuming |
//! | 23 | events of one revision arrive torn | half a change is acted upon |
//! | 24 | a slow watcher is waited for, or buffered for without end | a stall, or no memory left |
//! | 25 | a wake-up is lost | the last write hangs until the next |
//! | 26 | acknowledged before it is synced | a write is lost by a crash |
//! | 27 | an error of the disk is swallowed | a write is lost without a word |
//! | 28 | an id is used again, a wiped member comes back as itself | two leaders |
//! | 29 | a controller goes on after its leadership has ended | it acts on what is no longer so |
//! | 30 | a time-out is reported as a failure | a write that was made is made again |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;

/// Number, and the tests: file and name.
const SHOWN_BY: &[(usize, &[(&str, &str)])] = &[
    (
        1,
        &[
            ("server/tests/three_servers.rs", "a_retry_is_executed_once_whichever_member_takes_it"),
            ("server/src/machine/tests/requests.rs", "a_retry_gets_the_first_outcome_and_the_object_as_it_is"),
        ],
    ),
    (
        2,
        &[
            ("cli/tests/client.rs", "a_write_is_sent_again_elsewhere_with_the_same_request_id"),
            ("server/tests/three_servers.rs", "updates_through_members_in_turn_are_all_made_although_a_member_may_lag"),
        ],
    ),
    (3, &[("cli/tests/servers.rs", "a_leader_that_slept_through_an_election_answers_nothing_old")]),
    (
        4,
        &[
            ("server/src/raft/read.rs", "who_asks_after_a_round_was_sent_gets_the_next_one"),
            ("server/tests/three_servers.rs", "a_read_after_an_acknowledged_write_sees_it_on_every_member"),
        ],
    ),
    (5, &[("cli/tests/servers.rs", "a_leader_that_slept_through_an_election_answers_nothing_old")]),
    (6, &[("server/tests/three_servers.rs", "a_read_after_an_acknowledged_write_sees_it_on_every_member")]),
    (7, &[("server/tests/tidy.rs", "no_read_trusts_a_clock")]),
    (8, &[("server/src/machine/tests/random.rs", "every_law_holds_after_every_command")]),
    (9, &[("server/src/storage/tests/snapshots.rs", "an_installed_snapshot_is_the_state_also_after_a_restart")]),
    (10, &[("server/src/storage/tests/snapshots.rs", "a_snapshot_is_of_one_moment_and_holds_everything")]),
    (
        11,
        &[
            ("server/src/storage/tests/snapshots.rs", "a_snapshot_is_of_one_moment_and_holds_everything"),
            ("server/src/machine/tests/requests.rs", "outcomes_beyond_the_bound_are_unknown_never_executed_twice"),
        ],
    ),
    (
        12,
        &[
            (
                "server/src/storage/tests/crash.rs",
                "a_crash_at_any_moment_leaves_a_prefix_with_all_that_was_acknowledged",
            ),
            ("cli/tests/servers.rs", "an_address_is_taken_once_and_freed_at_once"),
        ],
    ),
    (13, &[("server/tests/tidy.rs", "pure_rooms_are_pure")]),
    (14, &[("server/tests/tidy.rs", "pure_rooms_are_pure")]),
    (
        15,
        &[
            ("server/src/machine/version.rs", "a_newer_command_is_refused_until_the_version_has_risen"),
            ("server/src/raft/tests.rs", "the_machine_version_rises_when_the_last_member_is_new"),
            ("server/src/raft/tests.rs", "a_member_whose_state_differs_is_stopped_and_does_not_start_again"),
        ],
    ),
    (
        16,
        &[
            ("server/src/machine/tests/random.rs", "every_law_holds_after_every_command"),
            ("server/src/machine/tests/requests.rs", "what_is_no_command_is_refused"),
        ],
    ),
    (17, &[("server/src/machine/tests/nodes.rs", "only_the_observed_lease_expires")]),
    (18, &[("server/src/controller/lease.rs", "a_new_leader_gives_every_node_a_fresh_grace")]),
    (19, &[("server/src/watch/stream.rs", "any_start_gives_every_later_event_once_while_writes_go_on")]),
    (20, &[("server/src/watch/stream.rs", "a_state_that_came_without_the_events_between_ends_the_watch")]),
    (
        21,
        &[
            ("cli/tests/client.rs", "a_watch_goes_on_at_another_server"),
            ("server/tests/three_servers.rs", "a_watch_from_a_revision_that_is_not_reached_waits_for_it"),
        ],
    ),
    (22, &[("server/src/watch/stream.rs", "bookmarks_come_after_what_they_cover_and_the_last_write_wakes")]),
    (23, &[("server/src/sync/delta.rs", "any_cut_and_any_coalescing_give_the_full_view")]),
    (24, &[("server/src/watch/stream.rs", "who_reads_nothing_holds_up_nobody_and_is_told_to_list_anew")]),
    (25, &[("server/src/watch/stream.rs", "bookmarks_come_after_what_they_cover_and_the_last_write_wakes")]),
    (
        26,
        &[
            (
                "server/src/storage/tests/crash.rs",
                "a_crash_at_any_moment_leaves_a_prefix_with_all_that_was_acknowledged",
            ),
            ("server/tests/three_servers.rs", "all_are_killed_at_once_and_everything_acknowledged_is_there"),
        ],
    ),
    (
        27,
        &[
            ("server/src/storage/tests/logs.rs", "a_broken_disk_is_final"),
            ("server/src/raft/tests.rs", "a_broken_disk_stops_the_member_and_no_write_is_acknowledged"),
        ],
    ),
    (
        28,
        &[
            ("server/src/machine/members.rs", "an_id_is_given_once_and_a_name_to_one_at_a_time"),
            ("server/tests/three_servers.rs", "a_member_that_lost_its_disk_gets_everything_back_before_it_votes"),
            ("cli/tests/members.rs", "a_server_joins_reads_votes_and_leaves_for_good"),
        ],
    ),
    (29, &[("server/src/machine/tests/nodes.rs", "only_the_observed_lease_expires")]),
    (
        30,
        &[
            ("cli/tests/client.rs", "an_outcome_that_nobody_knows_ends_with_three"),
            ("server/src/raft/tests.rs", "only_what_was_never_sent_is_certainly_not_proposed"),
        ],
    ),
];

#[test]
fn every_mistake_has_tests_that_are_there() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = std::fs::read_to_string(top.join("server/tests/mistakes.rs")).unwrap();
    let listed = own.lines().filter(|line| line.starts_with("//! | ") && !line.starts_with("//! | #")).count();
    let numbers: Vec<usize> = SHOWN_BY.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=listed).collect::<Vec<_>>());
    let mut absent = Vec::new();
    for (number, tests) in SHOWN_BY {
        assert!(!tests.is_empty(), "{number} has no test");
        for (file, name) in *tests {
            let text = std::fs::read_to_string(top.join(file)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
            let declares = |line: &str| line.contains(&format!("fn {name}("));
            let at = lines.iter().position(|line| declares(line));
            let is_test = at.is_some_and(|at| lines[at.saturating_sub(3)..at].iter().any(|line| line.contains("test")));
            if !is_test {
                absent.push(format!("{number}: {file} has no test {name}"));
            }
        }
    }
    assert!(absent.is_empty(), "{absent:#?}");
}
