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
    task_at_port(netns, address.into(), 80)
}

fn task_at_port(netns: &Path, address: IpAddr, port: u16) -> String {
    let body = page(netns, address, port).unwrap_or_else(|error| panic!("{address}: {error}"));
    body.split_once(' ').expect("a task and a peer").0.to_owned()
}

fn get_by(netns: &Path, address: IpAddr) -> std::io::Result<()> {
    let asked = run_in_netns(netns, || get((address, 80).into(), PATIENCE)).expect("a namespace");
    asked.map(drop)
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
    bridge_with_options(&lab);
    let hosts = give_ipv6(&lab);
    dual_bridge(&lab, &hosts);
    ipv6_alone(&lab, &hosts);
    // That the hosts have IPv6 now is seen with the next repair.
    lab.wait("all is as it should be", SOON, || {
        let verified = lab.rswarm(1, &["network", "verify"]).stdout;
        if verified.matches("as it should be").count() == 2 { Ok(()) } else { Err(verified) }
    });
    // The witness has no account of ports in mode `host`.
    lab.ok(1, &["service", "rm", "both"]);
    lab.until_kernels_are_exact(1, SOON);
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
        let found = lab.until_known(&netns, server, "tasks.db", 2);
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

/// What Docker's options ask for is so, and shown; what is not to be had is refused with the reason.
fn bridge_with_options(lab: &ClusterLab) {
    let option = |name: &str| format!("com.docker.network.{name}");
    let create = ["network", "create", "--driver", "bridge"];
    for (refused, reason) in [
        ("bridge.name=br7", "each node names its bridge"),
        ("bridge.enable_icc=no", "expected `true` or `false`"),
        ("driver.mtu=100", "expected a number of bytes from 576"),
    ] {
        let refused = option(refused);
        let refusal = [&create[..], &["-o", &refused, "tuned"]].concat();
        lab.refused(1, &refusal, &[refused.split('=').next().unwrap_or_default(), reason]);
    }
    let (mtu, icc, host_ip) = (
        option("driver.mtu=1400"),
        option("bridge.enable_icc=false"),
        option("bridge.host_binding_ipv4=127.0.0.1"),
    );
    lab.ok(1, &[&create[..], &["-o", &mtu, "-o", &icc, "-o", &host_ip, "tuned"]].concat());
    let seen = shown(lab, "tuned", "{{json .Options}}");
    for part in [&mtu, &icc, &host_ip] {
        let (name, value) = part.split_once('=').expect("an option");
        assert!(seen.contains(&format!(r#""{name}":"{value}""#)), "{seen}");
    }
    let flags = [&["--network", "tuned"][..], &ON_HOST_1].concat();
    let port = ["--publish", "mode=host,published=8094,target=80"];
    lab.create(1, "shy", 1, &[&flags[..], &port].concat(), &["serve", "80"]);
    lab.create(1, "neighbour", 1, &flags, &[]);
    lab.until_running(1, "shy", 1, SOON);
    lab.until_running(1, "neighbour", 1, SOON);
    let neighbour = namespaces(lab, "neighbour").remove(0);
    assert!(output(&neighbour, "ip link show eth0").contains(" mtu 1400 "));
    let found = lab.until_known(&neighbour, gateway(lab, "tuned"), "shy", 1);
    assert!(refused(&neighbour, *found.first().expect("its address"), 80));
    let host = lab.host(1);
    assert_eq!(task_at_port(&host.netns, Ipv4Addr::LOCALHOST.into(), 8094), "shy.1");
    assert!(refused(&lab.config().wire_netns(), host.address, 8094));
    lab.ok(1, &["service", "rm", "shy"]);
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
fn dual_bridge(lab: &ClusterLab, hosts: &[Ipv6Addr]) {
    let wire = lab.config().wire_netns();
    lab.ok(1, &["network", "create", "--driver", "bridge", "--ipv6", "pair"]);
    assert_eq!(shown(lab, "pair", "{{.EnableIPv4}} {{.EnableIPv6}} {{len .IPAM.Config}}"), "true true 2");
    let port = ["--publish", "mode=host,published=8091,target=80"];
    lab.create(1, "both", 1, &[&["--network", "pair"][..], &ON_HOST_1, &port].concat(), &["serve", "80"]);
    lab.create(1, "caller", 1, &[&["--network", "pair"][..], &ON_HOST_1].concat(), &[]);
    lab.until_running(1, "both", 1, SOON);
    lab.until_running(1, "caller", 1, SOON);
    let (caller, server) = (namespaces(lab, "caller").remove(0), gateway(lab, "pair"));
    let found = lab.until_known6(&caller, server, "both", 1);
    let found = *found.first().expect("its IPv6 address");
    assert_eq!(task_at(&caller, found), "both.1");
    let ipv4 = lab.until_known(&caller, server, "both", 1);
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

/// The addresses that a name has in one family, as the program of a task finds them.
fn looked_up(netns: &Path, server: IpAddr, name: &str) -> [usize; 2] {
    let count = |found: Option<usize>| found.unwrap_or_else(|| panic!("`{name}` is unknown"));
    [
        count(resolve(netns, server, name).map(|found| found.len())),
        count(resolve6(netns, server, name).map(|found| found.len())),
    ]
}

/// On networks with IPv6 alone, of either driver, nothing has or shows an address of IPv4.
fn ipv6_alone(lab: &ClusterLab, hosts: &[Ipv6Addr]) {
    lab.refused(1, &["network", "create", "--ipv4=false", "n"], &["--ipv4=false", "add --ipv6"]);
    let ipv4 = ["network", "create", "--ipv6", "--ipv4=false", "--subnet", "10.9.0.0/16", "n"];
    lab.refused(1, &ipv4, &["a subnet of IPv4"]);
    let create = ["network", "create", "--ipv6", "--ipv4=false"];
    lab.ok(1, &[&create[..], &["--attachable", "--subnet", "fd00:66::/64", "six"]].concat());
    lab.ok(1, &[&create[..], &["--driver", "bridge", "local6"]].concat());
    for network in ["six", "local6"] {
        let seen = shown(lab, network, "{{.EnableIPv4}} {{.EnableIPv6}} {{json .IPAM.Config}}");
        assert!(seen.starts_with("false true [{") && !seen.contains('.'), "{seen}");
        let flags = ["--network", network, "--replicas-max-per-node", "1"];
        let port = ["--publish", "8093:80"];
        let port = if network == "six" { &port[..] } else { &[] };
        lab.create(1, &format!("web-{network}"), 2, &[&flags, port].concat(), &["serve", "80"]);
        lab.create(1, &format!("ask-{network}"), 2, &flags, &[]);
    }
    for network in ["six", "local6"] {
        let (web, ask) = (format!("web-{network}"), format!("ask-{network}"));
        lab.until_running(1, &web, 2, SOON);
        lab.until_running(1, &ask, 2, SOON);
        let server: IpAddr =
            shown(lab, network, "{{(index .IPAM.Config 0).Gateway}}").parse().expect("an IPv6 gateway");
        assert!(server.is_ipv6());
        let here = if network == "six" { 2 } else { 1 };
        for netns in namespaces(lab, &ask) {
            assert_eq!(output(&netns, "ip -4 -o addr show dev eth0"), "");
            let root = netns.ancestors().nth(2).expect("a process").join("root/etc");
            let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("a file");
            assert!(
                read("resolv.conf").starts_with(&format!("nameserver {server}\n")),
                "{}",
                read("resolv.conf")
            );
            let own = read("hosts").lines().filter(|line| !line.starts_with(['f', ':'])).count();
            assert_eq!(own, 1, "the loopback: {}", read("hosts"));
            lab.until_known6(&netns, server, &format!("tasks.{web}"), here);
            assert_eq!(looked_up(&netns, server, &format!("tasks.{web}")), [0, here]);
            assert_eq!(looked_up(&netns, server, &web), [0, 1]);
            for address in resolve6(&netns, server, &web).expect("a known name") {
                assert!(task_at(&netns, address).starts_with(&web));
            }
            for address in resolve6(&netns, server, &format!("tasks.{web}")).expect("a known name") {
                assert!(task_at(&netns, address).starts_with(&web));
            }
        }
    }
    // What is shown of services and tasks; published ports answer by both.
    let seen = lab.ok(1, &["service", "inspect", "--format", "{{json .Endpoint.VirtualIPs}}", "ask-six"]);
    assert!(seen.contains("fd00:66::") && !seen.contains('.'), "{seen}");
    let task = lab.ok(1, &["task", "ls", "-q", "--filter", "service=ask-six"]);
    let task = task.lines().next().expect("a task");
    let seen = lab.ok(1, &["task", "inspect", "--format", "{{json .NetworksAttachments}}", task]);
    assert!(seen.contains("fd00:66::") && !seen.contains("240."), "{seen}");
    let wire = lab.config().wire_netns();
    for address in [lab.host(1).address.into(), lab.host(2).address.into(), hosts[0].into(), hosts[1].into()]
    {
        let address: IpAddr = address;
        assert!(task_at_port(&wire, address, 8093).starts_with("web-six"));
    }
    // A single task comes by an IPv6 address of choice.
    lab.refused(
        1,
        &["network", "connect", "--ip", "10.9.0.9", "six", "outside.1"],
        &["no address `10.9.0.9`"],
    );
    lab.ok(1, &["network", "connect", "--ip6", "fd00:66::9", "six", "outside.1"]);
    let from = namespaces(lab, "ask-six").remove(0);
    lab.wait("the connected task is reached", SOON, || {
        get_by(&from, "fd00:66::9".parse().expect("an address")).map_err(|error| error.to_string())
    });
}
