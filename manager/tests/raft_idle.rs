//! What a manager costs while nothing happens. A test program of its own, since it looks at its whole process.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod raft_group;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use raft_group::{Group, write_network};

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
            tokio::time::sleep(Duration::from_millis(500)).await;
            let dir = group.dir(0);
            let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
            files(&dir, &mut before);
            let ticks = cpu_ticks();
            let seconds = 4;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let used = cpu_ticks() - ticks;
            files(&dir, &mut after);
            assert_eq!(before, after);
            assert!(used <= seconds / 2, "{used} ticks of 10 ms in {seconds} s, expected at most 0.5 %");
            // And it still writes at once.
            write_network(group.node(0), 2).await.unwrap();
            group.kill(0).await;
        },
    );
}
