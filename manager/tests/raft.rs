//! Groups of managers in one process, over loopback: forming, electing, writing, losing members and coming back.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod raft_group;

use std::time::{Duration, Instant};

use raft_group::{Group, eventually, write_network, write_surely};
use rswarm_manager::raft::{Leadership, ProposeError, Reachability, Removal, RemoveError};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn one_manager_writes_reads_and_restarts() {
    runtime().block_on(async {
        let mut group = Group::bootstrap().await;
        eventually("the leader has recorded itself", || {
            group.node(0).store().snapshot().nodes().all(|node| node.manager.is_some())
        })
        .await;
        let applied = write_network(group.node(0), 1).await.unwrap();
        assert!(
            group.node(0).store().snapshot().network(raft_group::network_id(1)).is_some(),
            "reads its own write"
        );
        assert_eq!(group.node(0).store().snapshot().index, applied.index);
        assert!(matches!(write_network(group.node(0), 1).await, Err(ProposeError::Rejected(_))));
        group.node(0).read_barrier().await.unwrap();
        let before = group.node(0).store().snapshot();

        group.kill(0).await;
        let started = Instant::now();
        group.restart(0).await;
        group.node(0).read_barrier().await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert!(group.node(0).store().snapshot() == before, "the same state, indexes and all");
        write_surely(group.node(0), 2).await;
    });
}

/// What it noted to be committed may be less than what it acknowledged, and its vote says that it leads.
#[test]
fn a_leader_that_comes_back_shows_no_less_than_it_acknowledged() {
    runtime().block_on(async {
        for managers in [1, 3] {
            let mut group = Group::of(managers).await;
            for round in 0..8 {
                let leader = group.leader().await;
                let newest = round * 100 + 9;
                for n in round * 100..=newest {
                    write_surely(group.node(leader), n).await;
                }
                group.kill(leader).await;
                group.lose_last_entries(leader, 0);
                group.restart(leader).await;
                let node = group.node(leader);
                let mut leadership = node.leadership();
                let leads = leadership.wait_for(|part| matches!(part, Leadership::Leader { .. }));
                tokio::select! {
                    _ = leads => {}
                    result = node.read_barrier() => result.unwrap(),
                }
                assert!(
                    group.has(leader, newest),
                    "{managers} managers, round {round}: acknowledged, and gone"
                );
            }
        }
    });
}

#[test]
fn three_managers_survive_their_leader_and_a_restart_of_all() {
    runtime().block_on(async {
        let mut group = Group::of(3).await;
        let mut written = Vec::new();
        for n in 0..30 {
            // Followers forward.
            write_surely(group.node(n % 3), n as u128).await;
            written.push(n as u128);
        }
        let leader = group.leader().await;
        group.kill(leader).await;
        let killed = Instant::now();
        let survivor = (leader + 1) % 3;
        write_surely(group.node(survivor), 100).await;
        let lost = killed.elapsed();
        eprintln!("leader killed until a write is accepted: {lost:?}");
        // Some 1 s; a vote that is split, or a machine with other work to do, costs as much again.
        assert!(lost < Duration::from_secs(10), "a write was accepted after {lost:?}");
        written.push(100);

        group.kill(survivor).await;
        group.kill((leader + 2) % 3).await;
        for n in 0..3 {
            group.restart(n).await;
        }
        for n in 0..3 {
            group.node(n).read_barrier().await.unwrap();
            for id in &written {
                assert!(group.has(n, *id), "manager {n} lost network {id}");
            }
        }
        eventually("states agree", || {
            let states: Vec<_> = (0..3).map(|n| group.node(n).store().snapshot()).collect();
            states[0] == states[1] && states[1] == states[2]
        })
        .await;
    });
}

#[test]
fn every_member_knows_the_members_and_the_state_names_them() {
    runtime().block_on(async {
        let mut group = Group::steady(3, 10_000).await;
        let leader = group.leader().await;
        let ids: Vec<u64> = (0..3).map(|n| group.node(n).raft_id()).collect();
        assert_eq!(ids[0], 1);
        eventually("voters", || (0..3).all(|n| group.node(n).members().iter().all(|member| member.voter)))
            .await;
        for n in 0..3 {
            let members = group.node(n).members();
            assert_eq!(members.len(), 3);
            assert_eq!(members.iter().filter(|member| member.leader).count(), 1);
            assert_eq!(group.node(n).leader().unwrap().raft_id, ids[leader]);
        }
        eventually("all reachable", || {
            let members = group.node(leader).members();
            members.iter().all(|member| member.reachability == Reachability::Reachable)
        })
        .await;
        eventually("recorded", || {
            let state = group.node(leader).store().snapshot();
            let mut recorded: Vec<u64> = state
                .nodes()
                .filter_map(|node| node.manager.as_ref().map(|manager| manager.raft_id))
                .collect();
            recorded.sort_unstable();
            recorded.len() == 3 && ids.iter().all(|id| recorded.contains(id))
        })
        .await;
        let silent = (leader + 1) % 3;
        let id = ids[silent];
        group.kill(silent).await;
        eventually("unreachable", || {
            let members = group.node(leader).members();
            members
                .iter()
                .any(|member| member.raft_id == id && member.reachability == Reachability::Unreachable)
        })
        .await;
    });
}

#[test]
fn a_read_barrier_at_a_follower_sees_every_acknowledged_write() {
    runtime().block_on(async {
        let group = Group::steady(3, 10_000).await;
        let leader = group.leader().await;
        let follower = (leader + 1) % 3;
        for n in 0..50 {
            write_surely(group.node(leader), n).await;
            group.node(follower).read_barrier().await.unwrap();
            assert!(group.has(follower, n), "write {n} is not seen");
        }
        assert!(matches!(
            &*group.node(follower).leadership().borrow(),
            Leadership::Follower { leader: Some(_) }
        ));
    });
}

#[test]
fn without_a_majority_nothing_is_written_or_read_and_the_leader_stops_leading() {
    runtime().block_on(async {
        let mut group = Group::of(3).await;
        let leader = group.leader().await;
        group.kill((leader + 1) % 3).await;
        group.kill((leader + 2) % 3).await;
        let node = group.node(leader).clone();
        let mut leadership = node.leadership();
        let stops = leadership.wait_for(|part| matches!(part, Leadership::Follower { .. }));
        tokio::time::timeout(Duration::from_secs(20), stops).await.expect("steps down").unwrap();
        let (write, read) = tokio::join!(write_network(&node, 1), node.read_barrier());
        assert!(matches!(write, Err(ProposeError::NoLeader | ProposeError::Timeout)), "{write:?}");
        assert!(read.is_err());
        group.restart((leader + 1) % 3).await;
        write_surely(&node, 2).await;
    });
}

#[test]
fn a_member_that_lags_gets_a_snapshot() {
    runtime().block_on(async {
        let mut group = Group::steady(3, 50).await;
        let leader = group.leader().await;
        let lagging = (leader + 1) % 3;
        group.kill(lagging).await;
        for n in 0..400 {
            write_surely(group.node(leader), n).await;
        }
        let snapshots = group.dir(leader).join("snapshots");
        eventually("snapshots are made, two are kept", || {
            std::fs::read_dir(&snapshots).unwrap().count() == 2
        })
        .await;
        assert_eq!(std::fs::read_dir(group.dir(lagging).join("snapshots")).unwrap().count(), 0);
        group.restart(lagging).await;
        eventually("caught up", || group.has(lagging, 399)).await;
        group.node(lagging).read_barrier().await.unwrap();
        assert!(
            std::fs::read_dir(group.dir(lagging).join("snapshots")).unwrap().count() > 0,
            "came as a snapshot"
        );
        assert!(group.has(lagging, 0));
        // And one that starts from its snapshot goes on.
        group.kill(lagging).await;
        group.restart(lagging).await;
        write_surely(group.node(lagging), 1000).await;
        group.node(lagging).read_barrier().await.unwrap();
        assert!(group.has(lagging, 0) && group.has(lagging, 1000));
    });
}

#[test]
fn snapshots_come_as_often_as_the_cluster_says_also_after_a_restart() {
    runtime().block_on(async {
        // Started with an interval that no test comes near.
        let mut group = Group::bootstrap().await;
        raft_group::set_snapshot_interval(group.node(0), 20).await;
        let directory = group.dir(0).join("snapshots");
        let snapshots = || {
            let names = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let mut before = snapshots();
        for round in 0..2 {
            for n in 0..80 {
                write_surely(group.node(0), round * 1000 + n).await;
            }
            eventually("there are two, newer than before", || {
                let now = snapshots();
                now.len() == 2 && now.is_disjoint(&before)
            })
            .await;
            before = snapshots();
            group.kill(0).await;
            group.restart(0).await;
            group.node(0).read_barrier().await.unwrap();
        }
        assert!(group.has(0, 0) && group.has(0, 1079));
    });
}

#[test]
fn a_follower_that_lost_the_end_of_its_log_gets_it_again_from_the_same_leader() {
    runtime().block_on(async {
        let mut group = Group::steady(3, 10_000).await;
        let leader = group.leader().await;
        let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
        for n in 0..50 {
            write_surely(group.node(leader), n).await;
        }
        for n in 0..3 {
            group.node(n).read_barrier().await.unwrap();
        }
        let leadership = group.node(leader).leadership().borrow().clone();
        group.kill(follower).await;
        group.lose_last_entries(follower, 20);
        group.restart(follower).await;
        // The other one does not help: the leader needs the follower that lost entries.
        group.kill(other).await;
        for n in 50..60 {
            write_surely(group.node(leader), n).await;
        }
        group.node(follower).read_barrier().await.unwrap();
        for n in 0..60 {
            assert!(group.has(follower, n), "network {n} did not come back");
        }
        assert_eq!(*group.node(leader).leadership().borrow(), leadership, "the leader went on");
    });
}

#[test]
fn five_managers_survive_two_losses() {
    runtime().block_on(async {
        let mut group = Group::of(5).await;
        for _ in 0..2 {
            let leader = group.leader().await;
            group.kill(leader).await;
            let alive = group.alive();
            for (n, manager) in alive.iter().enumerate() {
                let id = 1000 * (leader as u128 + 1) + n as u128;
                write_surely(group.node(*manager), id).await;
            }
        }
        let alive = group.alive();
        assert_eq!(alive.len(), 3);
        for manager in alive {
            group.node(manager).read_barrier().await.unwrap();
            let networks = group.node(manager).store().snapshot().networks().count();
            assert_eq!(networks, 4 + 3);
        }
    });
}

/// A majority of the members before the last one is not what is left.
#[test]
fn a_member_that_has_joined_counts_at_once() {
    runtime().block_on(async {
        for round in 0..4 {
            let mut group = Group::of(3).await;
            group.kill(0).await;
            write_surely(group.node(1), round).await;
        }
    });
}

#[test]
fn members_are_removed_but_never_the_quorum() {
    runtime().block_on(async {
        let mut group = Group::steady(3, 10_000).await;
        let leader = group.leader().await;
        let (second, third) = ((leader + 1) % 3, (leader + 2) % 3);
        let third_id = group.node(third).raft_id();
        let node = group.node(leader).clone();
        let refused = group.node(second).remove_member(third_id).await;
        assert!(matches!(refused, Err(RemoveError::NotLeader)), "{refused:?}");
        assert!(matches!(node.remove_member(99_999).await, Err(RemoveError::NoMember(99_999))));

        // Of the two left without the live one, only one would be reachable.
        group.kill(second).await;
        eventually("noticed", || {
            node.members().iter().any(|member| member.reachability == Reachability::Unreachable)
        })
        .await;
        let error = node.remove_member(third_id).await.unwrap_err();
        assert!(matches!(error, RemoveError::Quorum { voters: 2, needed: 2, reachable: 1, .. }), "{error}");
        group.restart(second).await;
        eventually("back", || {
            node.members().iter().all(|member| member.reachability == Reachability::Reachable)
        })
        .await;

        assert_eq!(node.remove_member(third_id).await.unwrap(), Removal::Done);
        assert_eq!(node.members().len(), 2);
        group.kill(third).await;
        eventually("recorded", || {
            let state = node.store().snapshot();
            state.nodes().filter(|node| node.manager.is_some()).count() == 2
        })
        .await;

        // The leader hands over before it goes.
        let removal = node.remove_member(node.raft_id()).await.unwrap();
        assert_eq!(removal, Removal::Transferred { to: group.node(second).raft_id() });
        let heir = group.node(second).clone();
        let mut leadership = heir.leadership();
        leadership.wait_for(|part| matches!(part, Leadership::Leader { .. })).await.unwrap();
        assert_eq!(heir.remove_member(node.raft_id()).await.unwrap(), Removal::Done);
        group.kill(leader).await;
        write_surely(&heir, 7).await;
        assert!(matches!(heir.remove_member(heir.raft_id()).await, Err(RemoveError::Last(_))));

        // A removed manager comes back as another member.
        let again = group.join_again(third).await;
        assert!(again > third_id, "{again}");
        assert!(group.has(third, 7));
    });
}

#[test]
fn concurrent_writers_share_the_log() {
    runtime().block_on(async {
        let group = Group::of(3).await;
        let mut writers = Vec::new();
        for writer in 0..16u128 {
            let node = group.node(writer as usize % 3).clone();
            writers.push(tokio::spawn(async move {
                for n in 0..25 {
                    write_surely(&node, writer * 1000 + n).await;
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        group.node(1).read_barrier().await.unwrap();
        assert_eq!(group.node(1).store().snapshot().networks().count(), 400);
    });
}

#[test]
fn bad_starts_are_refused_with_reasons() {
    runtime().block_on(async {
        let mut group = Group::bootstrap().await;
        let error = group.open_again(0).await.err().expect("in use").to_string();
        assert!(error.contains("another daemon uses"), "{error}");
        let error = group.join_with_unreachable_address().await.err().expect("unreachable").to_string();
        assert!(error.contains("cannot reach `127.0.0.1:1`"), "{error}");
        group.kill(0).await;
        let error = group.open_as_another_cluster(0).await.err().expect("other cluster").to_string();
        assert!(error.contains("expected the state of node"), "{error}");
        group.restart(0).await;
        write_surely(group.node(0), 1).await;
    });
}
