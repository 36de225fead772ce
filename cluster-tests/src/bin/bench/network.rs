//! How soon all nodes' kernels follow a change, by their own word: a listener in each helper namespace hears what nft
//! announces there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use rswarm_api::v1;
use rswarm_cluster_tests::{ClusterLab, Figure, kernel};

use crate::Plan;
use crate::rswarm::{LIMIT, NO_LAB};

const NODES: usize = 5;
/// Each is an endpoint that comes.
const CHANGES: usize = 200;
const RECEIVE_BYTES: usize = 4 << 20;

pub fn measure(plan: &Plan) -> anyhow::Result<()> {
    let names = ["five hosts: endpoint ready until every kernel has it", "the same, worst"];
    if !names.iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let lab = ClusterLab::form("bench-net", 3, NODES - 3).context(NO_LAB)?;
    lab.ok(1, &["network", "create", "front"]);
    // One task of it on every node, so that all nodes follow the network.
    lab.create(1, "all", NODES, &["--network", "front"], &[]);
    lab.create(1, "web", 1, &["--network", "front", "--publish", "8080:80"], &["serve", "80"]);
    lab.until_running(1, "all", NODES, LIMIT);
    lab.until_running(1, "web", 1, LIMIT);
    let (heard, news) = mpsc::channel();
    for host in lab.hosts() {
        let (socket, heard, number) = (listener(&kernel::helper(host))?, heard.clone(), host.number);
        // Ends when nobody wants to know any more, at the latest with this program.
        std::thread::spawn(move || listen(number, &socket, &heard));
    }
    let mut figure = Figure::new(names[0], "ms", Some(30.0));
    for _ in 0..CHANGES {
        lab.ok(1, &["service", "scale", "--detach", "web=2"]);
        let running = lab.until_running(1, "web", 2, LIMIT);
        let newest = running.iter().max_by_key(|task| task.meta.as_ref().map(|meta| meta.created_at));
        figure.add(until_heard(newest.context("a task of two")?, &news)?);
        lab.ok(1, &["service", "scale", "--detach", "web=1"]);
        lab.wait("the surplus task has left", LIMIT, || {
            let tasks = lab.api(1).tasks(Some("web")).map_err(|status| status.to_string())?;
            match tasks
                .iter()
                .filter(|task| task.status.as_ref().is_some_and(|s| s.state() <= v1::TaskState::Running))
                .count()
            {
                1 => Ok(()),
                others => Err(format!("{others} are there")),
            }
        });
    }
    let worst = figure.values.iter().copied().fold(0.0, f64::max);
    println!("{figure}");
    let mut last = Figure::new(names[1], "ms", Some(250.0));
    last.add(worst);
    println!("{last}");
    Ok(())
}

/// What nft changed in a host, and when that was heard.
struct News {
    host: usize,
    at: SystemTime,
    bytes: Vec<u8>,
}

/// Hears of every change of the rule set in a namespace.
fn listener(netns: &Path) -> anyhow::Result<OwnedFd> {
    /// Source: Linux `include/uapi/linux/netfilter/nfnetlink.h`.
    const NFNLGRP_NFTABLES: u32 = 7;
    let opened = rswarm_net::run_in_netns(netns, || {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::NetlinkNetFilter),
        )?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BYTES)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
        nix::Result::Ok(socket)
    });
    Ok(opened??)
}

fn listen(host: usize, socket: &OwnedFd, heard: &mpsc::Sender<News>) {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length =
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("room for what nft announces");
        let news = News { host, at: SystemTime::now(), bytes: buffer[..length].to_vec() };
        if heard.send(news).is_err() {
            return;
        }
    }
}

/// Milliseconds from when the leader took up that a task runs, before it was committed, until the last kernel draws it
/// for new connections: its address is in a map that has no name of its own, as those of the service chains have.
fn until_heard(task: &v1::Task, news: &mpsc::Receiver<News>) -> anyhow::Result<f64> {
    let status = task.status.as_ref().context("a status")?;
    let from = SystemTime::UNIX_EPOCH + Duration::from_nanos(status.applied_at);
    let on_front = task.networks.iter().find(|network| network.name == "front");
    let address: Ipv4Addr =
        on_front.and_then(|network| network.address.as_ref()).context("an address")?.address.parse()?;
    let tells = |bytes: &[u8]| {
        let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
        has(b"__map") && has(&address.octets())
    };
    let mut first = BTreeMap::new();
    while first.len() < NODES {
        let one = news.recv_timeout(LIMIT).context("a kernel never heard of the task")?;
        if one.at >= from && tells(&one.bytes) {
            first.entry(one.host).or_insert(one.at);
        }
    }
    let last = first.values().max().context("five hosts")?;
    Ok(last.duration_since(from)?.as_secs_f64() * 1000.0)
}
