//! What a manager costs while nothing happens. A test program of its own, since it looks at its whole process.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod raft_group;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use raft_group::{Group, write_network};

const SECONDS: u64 = 4;

/// User and system time of this process, in clock ticks of 10 ms.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn files(dir: &Path, found: &mut BTreeMap<std::path::PathBuf, (u64, std::time::SystemTime)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            files(&path, found);
        } else {
            found.insert(path, (metadata.len(), metadata.modified().unwrap()));
        }
    }
}

#[test]
fn a_lone_manager_at_rest_uses_no_cpu_and_writes_nothing() {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(
        async {
            let mut group = Group::bootstrap().await;
            write_network(group.node(0), 1).await.unwrap();
            let dir = group.dir(0);
            // What its start still has to do may take longer on a machine with other work, so one of these must be quiet.
            let mut busy = Vec::new();
            for _ in 0..5 {
                let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
                files(&dir, &mut before);
                let ticks = cpu_ticks();
                tokio::time::sleep(Duration::from_secs(SECONDS)).await;
                let used = cpu_ticks() - ticks;
                files(&dir, &mut after);
                if before == after && used <= SECONDS / 2 {
                    busy.clear();
                    break;
                }
                busy.push((used, before, after));
            }
            assert!(
                busy.is_empty(),
                "ticks of 10 ms in {SECONDS} s, expected at most 0.5 %; files: {busy:?}"
            );
            // And it still writes at once.
            write_network(group.node(0), 2).await.unwrap();
            group.kill(0).await;
        },
    );
}
