//! Claims about overlays, names and the routing mesh, seen from inside tasks and from outside.

mod changes;
mod reach;
mod repair;
mod single;

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rswarm_api::v1;
use rswarm_cluster_tests::ClusterLab;
use rswarm_lab::page;

const SOON: Duration = Duration::from_secs(20);
/// One client's pace: it shall leave the machine to those whom it asks.
const PERIOD: Duration = Duration::from_millis(2);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);
const PUBLISHED: u16 = 8080;
/// Commands that change a service wait so long for its tasks to prove themselves.
const MONITOR: &str = "--update-monitor=500ms";

/// Measures until it takes less than `budget`, three times at most: where others have the processors, one may not.
/// Returns all that was measured.
fn until_below(budget: Duration, mut measure: impl FnMut() -> Duration) -> Vec<Duration> {
    let mut all = vec![measure()];
    while all[all.len() - 1] >= budget {
        assert!(all.len() < 3, "expected less than {budget:?}, measured {all:?}");
        all.push(measure());
    }
    all
}

/// The network namespaces of a service's running tasks, by name.
fn namespaces(lab: &ClusterLab, service: &str) -> Vec<(String, PathBuf)> {
    let running = lab.api(1).running(service).expect("a manager answers");
    let namespace = |task: &v1::Task| {
        let pid = task.status.as_ref()?.container.as_ref()?.pid?;
        Some((format!("{service}.{}", task.slot), PathBuf::from(format!("/proc/{pid}/ns/net"))))
    };
    running.iter().filter_map(namespace).collect()
}

/// A network and on it `web`, which is published on every node, and `client`.
fn form(lab: &ClusterLab, replicas: usize) {
    form_on(lab, replicas, &[]);
}

/// The same with flags of the network.
fn form_on(lab: &ClusterLab, replicas: usize, flags: &[&str]) {
    lab.ok(1, &[&["network", "create"][..], flags, &["front"]].concat());
    let publish = format!("{PUBLISHED}:80");
    lab.create(1, "web", replicas, &["--network", "front", "--publish", &publish, MONITOR], &["serve", "80"]);
    lab.create(1, "client", 3, &["--network", "front"], &[]);
    lab.until_running(1, "web", replicas, SOON);
    lab.until_running(1, "client", 3, SOON);
    lab.until_kernels_are_exact(1, SOON);
}

/// `TASK PEER` of so many pages.
fn pages<A: Into<IpAddr> + FromStr<Err: Debug>>(
    netns: &Path,
    address: A,
    port: u16,
    count: usize,
) -> Vec<(String, A)> {
    let address: IpAddr = address.into();
    let one = |_| {
        let body = page(netns, address, port).unwrap_or_else(|error| panic!("{address}:{port}: {error}"));
        let (task, peer) = body.split_once(' ').expect("a task and a peer");
        (task.to_owned(), peer.parse().expect("an address"))
    };
    (0..count).map(one).collect()
}

/// The name server in the `resolv.conf` of a task: the gateway of its network.
fn gateway(lab: &ClusterLab, network: &str) -> Ipv4Addr {
    let shown = lab.ok(1, &["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network]);
    shown.trim().parse().expect("the gateway of the network")
}
