//! Claims about what networks leave out or have besides: a way out, and IPv6, on bridges too.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rswarm_api::v1;
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{output, resolve, resolve6};
use rswarm_lab::{get, page};
use rswarm_net::run_in_netns;

const SOON: Duration = Duration::from_secs(20);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where all tasks of a service are to be.
const ON_HOST_1: [&str; 2] = ["--constraint", "node.hostname==host-1"];

/// The network namespaces of a service's running tasks, in the order of their slots.
fn namespaces(lab: &ClusterLab, service: &str) -> Vec<PathBuf> {
    let mut running = lab.api(1).running(service).expect("a manager answers");
    running.sort_by_key(|task| task.slot);
    let namespace = |task: &v1::Task| {
        let pid = task.status.as_ref()?.container.as_ref()?.pid?;
        Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
    };
    running.iter().filter_map(namespace).collect()
}

/// The address of a service's one task on a network.
fn address(lab: &ClusterLab, service: &str, network: &str) -> Ipv4Addr {
    let running = lab.api(1).running(service).expect("a manager answers");
    let on = running[0].networks.iter().find(|on| on.name == network).expect("it is on that network");
    on.address.as_ref().expect("it has an address").address.parse().expect("of IPv4")
}

/// What `network inspect` says.
fn shown(lab: &ClusterLab, network: &str, template: &str) -> String {
    lab.ok(1, &["network", "inspect", "--format", template, network]).trim().to_owned()
}

fn gateway(lab: &ClusterLab, network: &str) -> Ipv4Addr {
    shown(lab, network, "{{(index .IPAM.Config 0).Gateway}}").parse().expect("an IPv4 gateway")
}

/// Who answers at port 80 of an address.
fn task_at(netns: &Path, address: impl Into<IpAddr>) -> String {
    let address = address.into();
    let body = page(netns, address, 80).unwrap_or_else(|error| panic!("{address}: {error}"));
    body.split_once(' ').expect("a task and a peer").0.to_owned()
}

fn refused(netns: &Path, address: impl Into<IpAddr>, port: u16) -> bool {
    let address = (address.into(), port).into();
    let ask = || get(address, PATIENCE).map_err(|error| error.kind());
    matches!(
        run_in_netns(netns, ask).expect("a namespace"),
        Err(ErrorKind::ConnectionRefused | ErrorKind::NetworkUnreachable)
    )
}

#[test]
fn networks_have_the_families_and_the_way_out_that_they_were_made_with() {
    let Some(lab) = ClusterLab::form("families", 1, 1) else { return };
    internal_bridge(&lab);
    dual_bridge(&lab);
    // That the hosts have IPv6 now is seen with the next repair.
    lab.wait("all is as it should be", SOON, || {
        let verified = lab.rswarm(1, &["network", "verify"]).stdout;
        if verified.matches("as it should be").count() == 2 { Ok(()) } else { Err(verified) }
    });
}

/// Tasks of an internal bridge have each other, by name, and nobody else.
fn internal_bridge(lab: &ClusterLab) {
    lab.ok(1, &["network", "create", "--driver", "bridge", "--internal", "vault"]);
    let flags = [&["--network", "vault"][..], &ON_HOST_1].concat();
    let host_port = ["--publish", "mode=host,published=8090,target=80"];
    let refusal =
        [&["service", "create", "--name", "open"], &flags[..], &host_port, &["workload:1"]].concat();
    lab.refused(1, &refusal, &["port 80 cannot be published in mode `host`", "`vault`", "internal"]);
    lab.create(1, "db", 2, &flags, &["serve", "80"]);
    lab.create(1, "outside", 1, &ON_HOST_1, &["serve", "80"]);
    lab.until_running(1, "db", 2, SOON);
    lab.until_running(1, "outside", 1, SOON);
    assert_eq!(shown(lab, "vault", "{{.Internal}} {{.Driver}}"), "true bridge");
    let (server, host) = (gateway(lab, "vault"), lab.host(1));
    for netns in namespaces(lab, "db") {
        let found = resolve(&netns, server, "tasks.db").expect("a known name");
        let mut tasks: Vec<String> = found.iter().map(|at| task_at(&netns, *at)).collect();
        tasks.sort();
        assert_eq!(tasks, ["db.1", "db.2"]);
        assert_eq!(resolve(&netns, server, "example.org"), None, "nothing is asked of anyone outside");
        assert_eq!(output(&netns, "ip route show default"), "");
        // One that gives itself a route has no more of it, nor of the node but its name server.
        output(&netns, &format!("ip route add default via {server}"));
        let outside = address(lab, "outside", "bridge");
        for (address, port) in [(outside, 80), (host.address, 2377), (lab.host(2).address, 2377)] {
            assert!(refused(&netns, address, port), "{address}:{port}");
        }
    }
}

/// Gives the hosts and the wire between them IPv6 addresses; returns those of the hosts.
fn give_ipv6(lab: &ClusterLab) -> Vec<Ipv6Addr> {
    let address = |number: usize| Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, number as u16);
    let add = |netns: &Path, number: usize, link: &str| {
        output(netns, &format!("ip -6 addr add {}/64 dev {link} nodad", address(number)));
        address(number)
    };
    add(&lab.config().wire_netns(), 0xc, "br0");
    lab.hosts().iter().map(|host| add(&host.netns, host.number, "eth0")).collect()
}

/// On a bridge with both families tasks have names, addresses and ports in both.
fn dual_bridge(lab: &ClusterLab) {
    let (hosts, wire) = (give_ipv6(lab), lab.config().wire_netns());
    lab.ok(1, &["network", "create", "--driver", "bridge", "--ipv6", "pair"]);
    assert_eq!(shown(lab, "pair", "{{.EnableIPv4}} {{.EnableIPv6}} {{len .IPAM.Config}}"), "true true 2");
    let port = ["--publish", "mode=host,published=8091,target=80"];
    lab.create(1, "both", 1, &[&["--network", "pair"][..], &ON_HOST_1, &port].concat(), &["serve", "80"]);
    lab.create(1, "caller", 1, &[&["--network", "pair"][..], &ON_HOST_1].concat(), &[]);
    lab.until_running(1, "both", 1, SOON);
    lab.until_running(1, "caller", 1, SOON);
    let (caller, server) = (namespaces(lab, "caller").remove(0), gateway(lab, "pair"));
    let found = resolve6(&caller, server, "both").expect("a known name");
    let found = *found.first().expect("its IPv6 address");
    assert_eq!(task_at(&caller, found), "both.1");
    let ipv4 = resolve(&caller, server, "both").expect("a known name");
    assert_eq!(task_at(&caller, *ipv4.first().expect("its IPv4 address")), "both.1");
    let task = namespaces(lab, "both").remove(0);
    let root = task.ancestors().nth(2).expect("a process").join("root");
    let text = std::fs::read_to_string(root.join("etc/hosts")).expect("a file of hosts");
    assert!(text.lines().any(|line| line.starts_with(&format!("{found}\t"))), "{text}");
    // By the host's own addresses, and by no other host's.
    for address in [IpAddr::from(hosts[0]), lab.host(1).address.into()] {
        let body = page(&wire, address, 8091).unwrap_or_else(|error| panic!("{address}: {error}"));
        let client: IpAddr = body.split_once(' ').expect("a task and a peer").1.parse().expect("an address");
        assert_eq!(client.is_ipv6(), address.is_ipv6(), "{body}");
    }
    assert!(refused(&wire, hosts[1], 8091));
}
