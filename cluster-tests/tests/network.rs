//! Claims about overlays, names and the routing mesh, seen from inside tasks and from outside.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use nix::unistd::Pid;
use rswarm_api::v1;
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{helper, missing_program, output, resolve, resolve6};
use rswarm_lab::{get, page};
use rswarm_net::lab::delete_named_netns;
use rswarm_net::run_in_netns;

const SOON: Duration = Duration::from_secs(20);
/// One client's pace: it shall leave the machine to those whom it asks.
const PERIOD: Duration = Duration::from_millis(2);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);
const PUBLISHED: u16 = 8080;
/// Commands that change a service wait so long for its tasks to prove themselves.
const MONITOR: &str = "--update-monitor=500ms";

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

#[test]
fn services_are_found_and_published_with_the_clients_address() {
    let Some(mut lab) = ClusterLab::form("network", 1, 2) else { return };
    form_on(&lab, 2, &["--ipv6", "--subnet", "10.64.16.0/28"]);
    let wire = lab.config().wire_netns();
    let everyone: BTreeSet<String> = ["web.1".to_owned(), "web.2".to_owned()].into();
    let check_all = |lab: &ClusterLab| {
        // From outside, through each of three nodes, one of which has no task.
        let mut peers = BTreeSet::new();
        for host in lab.hosts() {
            let seen = pages(&wire, host.address, PUBLISHED, 20);
            assert_eq!(seen.iter().map(|(task, _)| task.clone()).collect::<BTreeSet<_>>(), everyone);
            peers.extend(seen.into_iter().map(|(_, peer)| peer));
        }
        assert_eq!(peers.len(), 1, "the one client there is");
        assert!(lab.hosts().iter().all(|host| !peers.contains(&host.address)), "{peers:?}");
        // From inside, by name and by virtual address.
        let server = gateway(lab, "front");
        for (_, netns) in namespaces(lab, "client") {
            let virtual_ip = resolve(&netns, server, "web").expect("a known name");
            assert_eq!(virtual_ip.len(), 1, "{virtual_ip:?}");
            assert_eq!(resolve(&netns, server, "tasks.web").expect("a known name").len(), 2);
            let address = *virtual_ip.first().expect("one");
            let seen = pages(&netns, address, 80, 20);
            assert_eq!(seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>(), everyone);
        }
    };
    check_all(&lab);
    // A task that calls its own service may be answered by itself.
    let server = gateway(&lab, "front");
    for (_, netns) in namespaces(&lab, "web") {
        let address = *resolve(&netns, server, "web").expect("a known name").first().expect("one");
        let seen = pages(&netns, address, 80, 20);
        assert_eq!(seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>(), everyone);
    }
    // It is too small for more, and grows while the daemon of a node is away.
    let way_out = "rswarm network update --subnet 10.64.16.0/27 front";
    lab.refused(1, &["service", "scale", "web=20"], &["has 13 addresses", "`web` for 21", way_out]);
    lab.refused(
        1,
        &["network", "update", "--subnet", "10.64.16.0/29", "front"],
        &["does not contain all of"],
    );
    lab.crash(3);
    let flags = ["--subnet", "10.64.0.0/16", "--ip-range", "10.64.2.0/24", "--label-add", "a=b"];
    lab.ok(1, &[&["network", "update"][..], &flags, &["front"]].concat());
    // Nothing of it needs the daemons.
    lab.crash(1);
    lab.crash(2);
    for host in lab.hosts() {
        let seen = pages(&wire, host.address, PUBLISHED, 20);
        assert_eq!(seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>(), everyone);
    }
    for number in 1..=3 {
        lab.restart(number);
    }
    lab.until_ready(3);
    check_all(&lab);
    lab.until_kernels_are_exact(1, SOON);
    let verified = lab.ok(1, &["network", "verify"]);
    assert_eq!(verified.matches("as it should be").count(), 3, "{verified}");
    let shown = "{{(index .IPAM.Config 0).Subnet}} {{.Labels.a}}";
    assert_eq!(lab.ok(1, &["network", "inspect", "--format", shown, "front"]).trim(), "10.64.0.0/16 b");
    // A new task is beyond what the old ones had: they reach each other by each family, by name and published.
    lab.ok(1, &["service", "scale", "--detach", "web=3"]);
    for (_, netns) in namespaces(&lab, "client") {
        let found = lab.wait("the new task has a name", SOON, || {
            let found = resolve(&netns, server, "tasks.web").unwrap_or_default();
            let found = found.into_iter().find(|at| at.octets()[..3] == [10, 64, 2]);
            let all6 = resolve6(&netns, server, "tasks.web").unwrap_or_default();
            // Its twin is counted from what was the first address.
            let twin = all6.into_iter().find(|at| at.segments()[6] == 0xffff);
            found.zip(twin).ok_or_else(|| "none yet".to_owned())
        });
        let seen = pages(&netns, found.0, 80, 1).into_iter().map(|(task, _)| task);
        let seen6 = pages(&netns, found.1, 80, 1).into_iter().map(|(task, _)| task);
        assert_eq!(seen.chain(seen6).collect::<Vec<_>>(), ["web.3", "web.3"]);
    }
    let third = namespaces(&lab, "web").into_iter().find(|(task, _)| task == "web.3").expect("it runs");
    let virtual_ip = *resolve(&third.1, server, "web").expect("a known name").first().expect("one");
    let reached =
        |seen: Vec<(String, Ipv4Addr)>| seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>();
    assert_eq!(reached(pages(&third.1, virtual_ip, 80, 30)).len(), 3);
    assert_eq!(reached(pages(&wire, lab.host(1).address, PUBLISHED, 30)).len(), 3);
    lab.refused(1, &["network", "rm", "front"], &["front", "in use"]);
    for service in ["web", "client"] {
        lab.ok(1, &["service", "rm", service]);
    }
    lab.wait("the network can be removed", SOON, || {
        let output = lab.rswarm(1, &["network", "rm", "front"]);
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    });
}

#[test]
fn names_virtual_addresses_and_ports_work_by_ipv6_and_the_client_is_seen() {
    let Some(lab) = ClusterLab::form("ipv6", 1, 2) else { return };
    // The wire has an address beside those of the hosts.
    let host6 = |number: usize| Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, number as u16);
    let wire = lab.config().wire_netns();
    let add = |mut command: std::process::Command, address: Ipv6Addr, link: &str| {
        let address = format!("{address}/64");
        let status = command.args(["-6", "addr", "add", &address, "dev", link, "nodad"]).status();
        assert!(status.expect("the ip binary").success());
    };
    let client = host6(0xc);
    add(rswarm_net::lab::command_in_netns(&wire, "ip").expect("the wire"), client, "br0");
    for host in lab.hosts() {
        add(host.command("ip").expect("a host"), host6(host.number), "eth0");
    }
    lab.ok(1, &["network", "create", "--ipv6", "front"]);
    let publish = format!("{PUBLISHED}:80");
    let (by_wire, at_host_1) = (PUBLISHED + 1, PUBLISHED + 2);
    let by = format!("published={by_wire},target=80,interface=eth0");
    let at = format!("[{}]:{at_host_1}:80", host6(1));
    let ports = ["--publish", &publish, "--publish", &by, "--publish", &at];
    lab.create(1, "web", 2, &[&["--network", "front"], &ports[..]].concat(), &["serve", "80"]);
    lab.create(1, "client", 3, &["--network", "front"], &[]);
    lab.until_running(1, "web", 2, SOON);
    lab.until_running(1, "client", 3, SOON);
    let everyone: BTreeSet<String> = ["web.1".to_owned(), "web.2".to_owned()].into();
    let names =
        |seen: &[(String, Ipv6Addr)]| seen.iter().map(|(task, _)| task.clone()).collect::<BTreeSet<_>>();
    let server = gateway(&lab, "front");
    for (_, netns) in namespaces(&lab, "client") {
        let found = resolve6(&netns, server, "web").expect("a known name");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(resolve6(&netns, server, "tasks.web").expect("a known name").len(), 2);
        assert_eq!(resolve(&netns, server, "web").expect("a known name").len(), 1);
        let seen = pages(&netns, *found.first().expect("one"), 80, 20);
        assert_eq!(names(&seen), everyone);
    }
    lab.wait("each node forwards IPv6", SOON, || {
        // What a node has of addresses is looked at with each repair.
        let out = lab.hosts().iter().map(|host| {
            let seen = page(&wire, host6(host.number), PUBLISHED);
            seen.map_err(|error| format!("{}: {error}", host.number))
        });
        out.collect::<Result<Vec<_>, _>>().map(drop)
    });
    for host in lab.hosts() {
        let seen = pages(&wire, host6(host.number), PUBLISHED, 20);
        assert_eq!(names(&seen), everyone);
        assert!(seen.iter().all(|(_, peer)| *peer == client), "{seen:?}");
    }
    // By one interface, and at one address: there, and nowhere else.
    let answers = |netns: &Path, address: IpAddr, port| {
        run_in_netns(netns, || get((address, port).into(), PATIENCE)).expect("a namespace").is_ok()
    };
    for host in lab.hosts() {
        let (own, own6) = (host.address.into(), host6(host.number).into());
        let seen = [own, own6].map(|address| answers(&wire, address, by_wire));
        assert_eq!((seen, answers(&host.netns, own, by_wire)), ([true; 2], false), "host-{}", host.number);
        let seen = [own, own6].map(|address| answers(&wire, address, at_host_1));
        assert_eq!(seen, [false, host.number == 1], "host-{}", host.number);
    }
    let shown = lab.ok(1, &["service", "ls", "--format", "{{.Ports}}"]);
    for port in [format!("eth0:{by_wire}->80/tcp"), format!("[{}]:{at_host_1}->80/tcp", host6(1))] {
        assert!(shown.contains(&port), "{port}: {shown}");
    }
    let refused = ["service", "update", "--publish-add", "[::1]:81:80", "web"];
    lab.refused(1, &refused, &["`::1`", "translated"]);
    // What is shown: a virtual IP and an address of each family, in subnets that follow from the cluster's.
    let shown =
        lab.ok(1, &["network", "inspect", "--format", "{{.EnableIPv6}} {{json .IPAM.Config}}", "front"]);
    assert!(shown.starts_with("true ") && shown.contains("::/64"), "{shown}");
    let shown = lab.ok(1, &["service", "inspect", "--format", "{{json .Endpoint.VirtualIPs}}", "web"]);
    assert!(shown.contains("/64"), "{shown}");
    let verified = lab.ok(1, &["network", "verify"]);
    assert_eq!(verified.matches("as it should be").count(), 3, "{verified}");
    lab.until_kernels_are_exact(1, SOON);
    lab.refused(1, &["network", "create", "--ipv6", "--driver", "bridge", "b"], &["have IPv4 only"]);
    lab.refused(1, &["network", "create", "--ipv6", "--subnet", "fd00::/112", "n"], &["/32 to /64"]);
}

#[test]
fn replaced_scaled_and_drained_tasks_fail_no_request() {
    let Some(lab) = ClusterLab::form("drain", 1, 2) else { return };
    form(&lab, 3);
    let wire = lab.config().wire_netns();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut silent = Vec::new();
    let mut failures = std::thread::scope(|scope| {
        let client = |host: usize| {
            let address = lab.host(host).address;
            let (wire, stop, asked) = (&wire, &stop, &asked);
            move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(PERIOD);
                    asked.fetch_add(1, Ordering::Relaxed);
                    let at = SystemTime::now();
                    if let Err(error) =
                        run_in_netns(wire, || get((address, PUBLISHED).into(), PATIENCE)).expect("the wire")
                    {
                        failures.push((at, host, error));
                    }
                }
                failures
            }
        };
        let clients: Vec<_> = (1..=3).map(|host| scope.spawn(client(host))).collect();
        for change in [
            &["service", "update", "--force", "web"][..],
            &["service", "scale", "web=1"],
            &["service", "scale", "web=4"],
            &["service", "update", "--force", "web"],
            &["node", "update", "--availability", "drain", "host-2"],
        ] {
            lab.ok(1, change);
            silent.extend(lab.silent_starts(1, "web"));
        }
        lab.wait("host-2 is empty", SOON, || {
            let tasks = lab.ok(1, &["node", "ps", "--filter", "desired-state=running", "--quiet", "host-2"]);
            if tasks.trim().is_empty() { Ok(()) } else { Err(tasks) }
        });
        lab.until_running(1, "web", 4, SOON);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    silent.extend(lab.silent_starts(1, "web"));
    assert!(!silent.is_empty());
    let asked = asked.load(Ordering::Relaxed);
    eprintln!("{asked} requests, {} failed", failures.len());
    failures.retain(|(at, _, error)| {
        error.kind() != ErrorKind::ConnectionRefused || !silent.iter().any(|start| start.contains(at))
    });
    assert!(failures.is_empty(), "{failures:?}, and tasks did not listen {silent:?}");
    assert!(asked > 100, "{asked}");
}

#[test]
fn datagrams_of_one_port_go_on_through_a_rolling_update() {
    let Some(lab) = ClusterLab::form("udp", 1, 2) else { return };
    lab.ok(1, &["network", "create", "front"]);
    let publish = format!("{PUBLISHED}:80/udp");
    lab.create(1, "web", 2, &["--network", "front", "--publish", &publish, MONITOR], &["serve", "80"]);
    lab.until_running(1, "web", 2, SOON);
    let (wire, address) = (lab.config().wire_netns(), lab.host(3).address);
    let stop = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            run_in_netns(&wire, || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((address, PUBLISHED))?;
                socket.set_read_timeout(Some(Duration::from_millis(10)))?;
                let (mut heard, mut longest, mut buffer) = (Instant::now(), Duration::ZERO, [0; 512]);
                while !stop.load(Ordering::Relaxed) {
                    // A refusal of what was sent before may come back here.
                    let _ = socket.send(b"?");
                    if socket.recv(&mut buffer).is_ok() {
                        longest = longest.max(heard.elapsed());
                        heard = Instant::now();
                    }
                }
                Ok::<_, std::io::Error>(longest.max(heard.elapsed()))
            })
        });
        lab.ok(1, &["service", "update", "--force", "web"]);
        stop.store(true, Ordering::Relaxed);
        client.join().expect("the client").expect("its namespace").expect("a socket")
    });
    assert!(longest < Duration::from_secs(1), "silent for {longest:?}");
}

#[test]
fn a_service_lets_in_whom_it_names() {
    let Some(lab) = ClusterLab::form("allow", 1, 1) else { return };
    lab.ok(1, &["network", "create", "front"]);
    let create = |name: &str, flags: &[&str]| {
        let mut all = vec![
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--network",
            "front",
            "--mode",
            "global",
            MONITOR,
        ];
        all.extend(flags);
        all.extend(["workload:1", "serve", "80"]);
        let said = lab.rswarm(1, &all);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stderr
    };
    let warned = create("db", &["--allow-from", "api", "--publish", "8080:80"]);
    assert!(warned.contains("`api`"), "{warned}");
    create("api", &[]);
    create("other", &[]);
    for service in ["db", "api", "other"] {
        lab.until_running(1, service, 2, SOON);
    }
    lab.refused(1, &["service", "update", "--allow-from-add", "a b", "db"], &["a b", "name"]);
    let shown = lab.ok(1, &["service", "inspect", "--pretty", "db"]);
    assert!(shown.lines().any(|line| line.starts_with("Allowed From:") && line.ends_with("api")), "{shown}");
    let server = gateway(&lab, "front");
    // Whether all tasks of a service reach another by its virtual address; `None` if some do.
    let reach = |from: &str, to: &str| {
        let reach: BTreeSet<bool> = namespaces(&lab, from)
            .iter()
            .flat_map(|(_, netns)| {
                let to = *resolve(netns, server, to).expect("a known name").first().expect("an address");
                let ask = || (0..6).map(|_| get((to, 80).into(), PATIENCE).is_ok()).collect::<Vec<_>>();
                run_in_netns(netns, ask).expect("the task's namespace")
            })
            .collect();
        (reach.len() == 1).then_some(reach == BTreeSet::from([true]))
    };
    let (yes, no) = (Some(true), Some(false));
    assert_eq!([reach("api", "db"), reach("other", "db"), reach("db", "other")], [yes, no, yes]);
    pages(&lab.config().wire_netns(), lab.host(1).address, PUBLISHED, 6);
    lab.ok(1, &["service", "update", "--allow-from-add", "other", "--allow-from-rm", "api", "db"]);
    lab.wait("the other one is let in", SOON, || {
        let found = [reach("other", "db"), reach("api", "db")];
        if found == [yes, no] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    lab.ok(1, &["service", "update", "--allow-from-rm", "other", "db"]);
    lab.wait("all are let in", SOON, || {
        let found = reach("api", "db");
        if found == yes { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
}

/// The one task of `solo` is on no network that has names; `web` is on `front`. Both come to `tools` and go again.
#[test]
fn single_tasks_are_connected_to_a_network_and_leave_it() {
    let Some(mut lab) = ClusterLab::form("connect", 1, 1) else { return };
    for network in [&["front"][..], &["--attachable", "--ipv6", "tools"]] {
        lab.ok(1, &[&["network", "create"][..], network].concat());
    }
    lab.create(1, "web", 2, &["--network", "front", MONITOR], &["serve", "80"]);
    lab.create(1, "solo", 1, &["--constraint", "node.role==worker", MONITOR], &["serve", "80"]);
    lab.create(1, "probe", 2, &["--network", "tools", MONITOR], &["serve", "80"]);
    for (service, replicas) in [("web", 2), ("solo", 1), ("probe", 2)] {
        lab.until_running(1, service, replicas, SOON);
    }
    lab.refused(1, &["network", "connect", "front", "solo.1"], &["solo.1", "front", "--attachable"]);
    lab.refused(1, &["network", "connect", "tools", "solo.7"], &["no such task: solo.7"]);
    lab.refused(
        1,
        &["network", "connect", "--ip", "10.9.9.9", "tools", "solo.1"],
        &["10.9.9.9", "expected one of"],
    );
    lab.refused(1, &["network", "disconnect", "front", "web.1"], &["service update --network-rm front web"]);
    lab.ok(1, &["network", "connect", "--alias", "db", "tools", "solo.1"]);
    lab.ok(1, &["network", "connect", "tools", "web.1"]);
    let server = gateway(&lab, "tools");
    let found = |netns: &Path, name: &str| -> Result<(String, Ipv4Addr), String> {
        let found = resolve(netns, server, name).unwrap_or_default();
        let address = *found.first().ok_or_else(|| format!("no address for `{name}`"))?;
        let body = page(netns, address, 80).map_err(|error| format!("{name}: {error}"))?;
        Ok((body.split(' ').next().unwrap_or_default().to_owned(), address))
    };
    let expect = |lab: &ClusterLab, netns: &Path, name: &str, task: &str| {
        lab.wait(&format!("{name} is {task}"), SOON, || match found(netns, name)? {
            (answered, address) if answered == task => Ok(address),
            other => Err(format!("{other:?}")),
        })
    };
    let of = |lab: &ClusterLab, service: &str, n: usize| namespaces(lab, service).swap_remove(n).1;
    for (_, netns) in namespaces(&lab, "probe") {
        expect(&lab, &netns, "db", "solo.1");
        expect(&lab, &netns, "solo.1", "solo.1");
        expect(&lab, &netns, "web.1.tools", "web.1");
        assert_eq!(resolve6(&netns, server, "db").map(|all| all.len()), Some(1));
    }
    // They see who is there, and go on with what they had.
    let solo = of(&lab, "solo", 0);
    let inside = |netns: &Path, file: &str| {
        let root = netns.parent().and_then(Path::parent).expect("/proc/PID/ns/net").join("root");
        std::fs::read_to_string(root.join(file)).expect("a file of the task")
    };
    assert!(inside(&solo, "etc/resolv.conf").contains(&format!("nameserver {server}\n")));
    let at = expect(&lab, &solo, "web.1", "web.1");
    expect(&lab, &solo, "solo.1", "solo.1");
    let web = namespaces(&lab, "web");
    let first = &web.iter().find(|(name, _)| name == "web.1").expect("it runs").1;
    assert!(inside(first, "etc/hosts").lines().any(|line| line.starts_with(&format!("{at}\t"))));
    let front = *resolve(first, gateway(&lab, "front"), "web").expect("a known name").first().expect("one");
    assert_eq!(
        pages(first, front, 80, 20).into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>().len(),
        2
    );
    lab.until_kernels_are_exact(1, SOON);
    lab.refused(1, &["network", "rm", "tools"], &["tools", "in use"]);

    // A daemon that was away makes up for it, also for what it had been told and not done.
    lab.crash(2);
    lab.ok(1, &["network", "disconnect", "tools", "solo.1"]);
    lab.ok(1, &["network", "disconnect", "tools", "web.1"]);
    lab.restart(2);
    lab.until_ready(2);
    let probe = of(&lab, "probe", 0);
    lab.wait("nobody is connected any more", SOON, || {
        let links = output(&solo, "ip -brief link");
        let reached = run_in_netns(&probe, || get((at, 80).into(), PATIENCE)).expect("its namespace");
        let asks = inside(&solo, "etc/resolv.conf").contains(&server.to_string());
        match (links.matches("eth").count(), reached, asks) {
            (1, Err(_), false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(
        pages(&probe, *resolve(&probe, server, "probe").expect("known").first().expect("one"), 80, 4).len(),
        4
    );
    lab.until_kernels_are_exact(1, SOON);
    assert_eq!(lab.ok(1, &["network", "verify"]).matches("as it should be").count(), 2);
    lab.ok(1, &["service", "rm", "probe"]);
    lab.wait("the network can be removed", SOON, || {
        let output = lab.rswarm(1, &["network", "rm", "tools"]);
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    });
}

#[test]
fn a_filtered_data_path_is_told_and_a_changed_mtu_is_followed() {
    if let Some(program) = missing_program() {
        eprintln!("skipped: `a_filtered_data_path_is_told_and_a_changed_mtu_is_followed` needs `{program}`");
        return;
    }
    const TOLD: Duration = Duration::from_secs(40);
    let Some(mut lab) = ClusterLab::form("filtered", 1, 2) else { return };
    form(&lab, 3);
    let run = |lab: &ClusterLab, words: &str| output(&lab.host(2).netns, words);
    let listed = |lab: &ClusterLab| lab.ok(1, &["node", "ls"]);
    run(&lab, "nft add table ip filtered");
    run(&lab, "nft add chain ip filtered input { type filter hook input priority 0 ; }");
    run(&lab, "nft add rule ip filtered input udp dport 4789 drop");
    lab.wait("all nodes tell whom they do not reach", TOLD, || {
        let shown = listed(&lab);
        let all = shown.contains("cut off from 2") && shown.matches("cut off from 1").count() == 2;
        if all { Ok(()) } else { Err(shown) }
    });
    let told = "`host-1` gets no answer from node `host-2` by the data path: let UDP port 4789 pass";
    assert!(lab.ok(1, &["node", "inspect", "--pretty", "host-1"]).contains(told));
    let verified = lab.rswarm(1, &["network", "verify"]);
    assert!(verified.code == Some(1) && verified.stdout.contains(told), "{}", verified.stdout);
    run(&lab, "nft delete table ip filtered");
    lab.wait("all reach each other", TOLD, || {
        let shown = listed(&lab);
        if shown.contains("cut off") { Err(shown) } else { Ok(()) }
    });
    // A node that is down, and daemons that are away, cut nobody off.
    run(&lab, "ip link set eth0 mtu 1300");
    lab.crash(3);
    let narrow = |lab: &ClusterLab, number: usize| {
        let shown = output(&helper(lab.host(number)), "ip link");
        let links: Vec<&str> =
            shown.lines().filter(|line| line.contains(": rs") && !line.contains(": rsup")).collect();
        let wide = links.iter().find(|line| !line.contains("mtu 1250 "));
        wide.map_or(Ok(()), |line| Err(format!("host-{number}: {line}")))
    };
    lab.wait("links have what fits", TOLD, || narrow(&lab, 1).and_then(|()| narrow(&lab, 2)));
    lab.restart(3);
    lab.until_ready(3);
    lab.wait("links have what fits", TOLD, || narrow(&lab, 3));
    assert!(!listed(&lab).contains("cut off"), "{}", listed(&lab));
}

/// What `network verify --json` says of each host.
fn verify(lab: &ClusterLab) -> Vec<serde_json::Value> {
    let said = lab.rswarm(1, &["network", "verify", "--json"]);
    serde_json::from_str(&said.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", said.stdout, said.stderr))
}

fn mended(lab: &ClusterLab) -> Vec<u64> {
    verify(lab).iter().map(|node| node["Mended"].as_u64().expect("a number")).collect()
}

#[test]
fn tasks_on_a_bridge_find_those_of_their_own_node() {
    let Some(lab) = ClusterLab::form("bridge-names", 1, 1) else { return };
    lab.ok(1, &["network", "create", "--driver", "bridge", "local"]);
    let spread = ["--network", "name=local,alias=pages", "--replicas-max-per-node", "1", MONITOR];
    lab.create(1, "web", 2, &spread, &[]);
    lab.create(1, "plain", 1, &[MONITOR], &[]);
    lab.until_running(1, "web", 2, SOON);
    lab.until_running(1, "plain", 1, SOON);
    let server = gateway(&lab, "local");
    let resolv_conf = |netns: &Path| {
        let root = netns.ancestors().nth(2).expect("a process").join("root");
        std::fs::read_to_string(root.join("etc/resolv.conf")).expect("a resolv.conf")
    };
    for (_, netns) in namespaces(&lab, "web") {
        let text = resolv_conf(&netns);
        assert!(text.starts_with(&format!("nameserver {server}\n")), "{text}");
        for name in ["web", "tasks.web", "pages", "web.local"] {
            let found = resolve(&netns, server, name).expect("a known name");
            let own = found.first().filter(|_| found.len() == 1).expect("one task");
            run_in_netns(&netns, || UdpSocket::bind((*own, 0)).expect("its own address"))
                .expect("a namespace");
        }
    }
    let plain = resolv_conf(&namespaces(&lab, "plain")[0].1);
    assert!(!plain.contains(&server.to_string()), "the default bridge has no names: {plain}");

    // Where somebody else has the port, a task is left to the node's name servers.
    let taken = || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None).expect("a socket");
        setsockopt(&fd, sockopt::IpFreebind, &true).expect("its option");
        bind(fd.as_raw_fd(), &SockaddrIn::new(10, 99, 0, 1, 53)).expect("a free port");
        fd
    };
    let _held = run_in_netns(&lab.host(1).netns, taken).expect("the host's namespace");
    lab.ok(1, &["network", "create", "--driver", "bridge", "--subnet", "10.99.0.0/24", "taken"]);
    let there = ["--network", "taken", "--constraint", "node.hostname==host-1", MONITOR];
    lab.create(1, "late", 1, &there, &[]);
    lab.until_running(1, "late", 1, SOON);
    assert_eq!(resolv_conf(&namespaces(&lab, "late")[0].1), plain);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
}

#[test]
fn a_resolver_that_hangs_or_was_left_behind_is_told_replaced_and_counted() {
    let Some(lab) = ClusterLab::form("names", 1, 0) else { return };
    lab.ok(1, &["network", "create", "front"]);
    lab.create(1, "web", 1, &["--network", "front", MONITOR], &[]);
    lab.until_running(1, "web", 1, SOON);
    let (server, (_, netns)) = (gateway(&lab, "front"), namespaces(&lab, "web").remove(0));
    let host = lab.host(1);
    let resolver = || -> i32 {
        let text = std::fs::read_to_string(host.run_root.join("resolver.pid")).expect("a resolver");
        text.trim().parse().expect("a process id")
    };
    let until_answered = |first: i32| {
        lab.wait("another one answers", SOON, || {
            let missing = verify(&lab)[0]["Missing"]["Names"].clone();
            if resolver() != first && missing == 0 { Ok(()) } else { Err(format!("missing: {missing}")) }
        });
        assert_eq!(resolve(&netns, server, "web").map(|found| found.len()), Some(1));
    };
    let before = mended(&lab)[0];
    let told = (0..3).any(|_| {
        // Another moment if the repair was there first.
        let hanging = resolver();
        kill(Pid::from_raw(hanging), Signal::SIGSTOP).expect("it runs");
        let told = verify(&lab)[0]["Missing"]["Names"] == 1;
        until_answered(hanging);
        told
    });
    assert!(told, "a resolver that hangs is told");
    assert!(mended(&lab)[0] > before);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));

    // One of another program, as after an upgrade.
    let program = format!("/proc/{}/exe", resolver());
    let copy = host.data_root.join("rswarm-of-before");
    std::fs::copy(&program, &copy).expect("a copy");
    let mut command = std::process::Command::new(&copy);
    command
        .args(["resolver", "--replace", "--run-root"])
        .arg(&host.run_root)
        .arg("--netns")
        .arg(helper(host));
    let mut of_before = run_in_netns(&host.netns, || command.spawn()).expect("the host").expect("it starts");
    let former = i32::try_from(of_before.id()).expect("a process id");
    let ended = lab.wait("another takes its place", SOON, || {
        let ended = of_before.try_wait().expect("its end can be asked for");
        ended.ok_or_else(|| "it still runs".to_owned())
    });
    assert!(ended.success());
    until_answered(former);

    let (former, before) = (resolver(), mended(&lab)[0]);
    delete_named_netns(&helper(host)).expect("the helper namespace goes");
    until_answered(former);
    assert!(mended(&lab)[0] > before);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
}

#[test]
fn planted_entries_vanish_and_are_counted() {
    if let Some(program) = missing_program() {
        eprintln!("skipped: `planted_entries_vanish_and_are_counted` needs `{program}`");
        return;
    }
    const WITHIN: Duration = Duration::from_secs(10);
    let Some(lab) = ClusterLab::form("planted", 1, 2) else { return };
    form(&lab, 3);
    lab.until_kernels_are_exact(1, SOON);
    let before = mended(&lab);
    assert_eq!(before, [0, 0, 0], "nothing differs in health");
    // On host-1, so `…:01` is its own and `…:02` a peer's; 10.1.0.2 is the first virtual address on `front`.
    let planted = [
        "bridge fdb replace 02:52:00:00:00:02 dev rsx4097 dst 10.79.0.99 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev rsx4097 dst 10.79.0.99 self permanent",
        "bridge fdb del 02:52:00:00:00:03 dev rsx4096 self",
        "bridge fdb add 02:52:00:00:00:77 dev rsx4097 master static",
        "bridge fdb add 02:52:00:00:00:78 dev rsx4097 master permanent",
        "bridge fdb replace 02:52:00:00:00:03 dev rsx4097 master permanent",
        "ip neigh add 10.1.0.200 lladdr 02:52:00:00:00:02 dev rsb4097 nud permanent",
        "ip neigh add 10.1.0.201 lladdr 02:52:00:00:00:02 dev rsb4097 nud noarp",
        "ip neigh add 10.1.0.202 lladdr 02:52:00:00:00:02 dev rsb4097 nud reachable",
        "ip neigh replace 169.254.128.2 lladdr 02:52:00:00:00:03 dev rsb4096 nud permanent",
        "ip route replace default via 169.254.128.3 dev rsb4096 table 1002 onlink",
        "ip rule del fwmark 0x3/0xfff",
        "ip rule add from 10.1.0.3 lookup 1002 pref 50",
        "ip route add blackhole 10.1.0.3",
        "nft add element inet rswarm members { rsb4097 . 10.1.0.200 }",
        "nft delete element inet rswarm services { rsb4097 . 10.1.0.2 }",
    ];
    let kernel = helper(lab.host(1));
    for words in planted {
        output(&kernel, words);
    }
    lab.until_kernels_are_exact(1, WITHIN);
    let after = mended(&lab);
    assert!(after[0] >= before[0] + planted.len() as u64, "{before:?} {after:?}");
    assert_eq!(after[1..], before[1..], "nothing was planted there");
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
    // What ends is no difference either, also of the bridges that only this service was on.
    lab.create(1, "local", 3, &[MONITOR], &["serve", "80"]);
    lab.until_running(1, "local", 3, SOON);
    lab.ok(1, &["service", "rm", "web", "client", "local"]);
    lab.wait("all tasks are gone", SOON, || {
        let left = lab.ok(1, &["task", "ls", "-q"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    lab.until_kernels_are_exact(1, SOON);
    assert_eq!(mended(&lab), after);
}
