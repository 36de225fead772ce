//! Who reaches whom, by which name and address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{resolve, resolve6};
use rswarm_lab::{get, page};
use rswarm_net::run_in_netns;

use super::{MONITOR, PATIENCE, PUBLISHED, SOON, form_on, gateway, namespaces, pages};

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
            let seen = pages(&wire, host.address, PUBLISHED, 40);
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
            let seen = pages(&netns, address, 80, 40);
            assert_eq!(seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>(), everyone);
        }
    };
    check_all(&lab);
    // A task that calls its own service may be answered by itself.
    let server = gateway(&lab, "front");
    for (_, netns) in namespaces(&lab, "web") {
        let address = *resolve(&netns, server, "web").expect("a known name").first().expect("one");
        let seen = pages(&netns, address, 80, 40);
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
        let seen = pages(&wire, host.address, PUBLISHED, 40);
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
    lab.until_kernels_are_exact(1, SOON);
    let third = namespaces(&lab, "web").into_iter().find(|(task, _)| task == "web.3").expect("it runs");
    let virtual_ip = *resolve(&third.1, server, "web").expect("a known name").first().expect("one");
    let reached =
        |seen: Vec<(String, Ipv4Addr)>| seen.into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>();
    assert_eq!(reached(pages(&third.1, virtual_ip, 80, 60)).len(), 3);
    assert_eq!(reached(pages(&wire, lab.host(1).address, PUBLISHED, 60)).len(), 3);
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
    lab.until_kernels_are_exact(1, SOON);
    let everyone: BTreeSet<String> = ["web.1".to_owned(), "web.2".to_owned()].into();
    let names =
        |seen: &[(String, Ipv6Addr)]| seen.iter().map(|(task, _)| task.clone()).collect::<BTreeSet<_>>();
    let server = gateway(&lab, "front");
    for (_, netns) in namespaces(&lab, "client") {
        let found = resolve6(&netns, server, "web").expect("a known name");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(resolve6(&netns, server, "tasks.web").expect("a known name").len(), 2);
        assert_eq!(resolve(&netns, server, "web").expect("a known name").len(), 1);
        let seen = pages(&netns, *found.first().expect("one"), 80, 40);
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
        let seen = pages(&wire, host6(host.number), PUBLISHED, 40);
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
    lab.refused(1, &["network", "create", "--ipv6", "--subnet", "fd00::/112", "n"], &["/32 to /64"]);
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
    lab.until_kernels_are_exact(1, SOON);
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
    // Then each node leads to its own task first, by virtual address and published port.
    let answering = || -> Vec<BTreeSet<String>> {
        let wire = lab.config().wire_netns();
        let tasks = |seen: Vec<(String, Ipv4Addr)>| seen.into_iter().map(|(task, _)| task).collect();
        let published = lab.hosts().iter().map(|host| tasks(pages(&wire, host.address, PUBLISHED, 40)));
        let inside = namespaces(&lab, "other").into_iter().map(|(_, netns)| {
            let address = *resolve(&netns, server, "db").expect("a known name").first().expect("an address");
            tasks(pages(&netns, address, 80, 40))
        });
        published.chain(inside).collect()
    };
    assert!(answering().iter().all(|tasks| tasks.len() == 2));
    lab.ok(1, &["service", "update", "--prefer-same-node", "db"]);
    lab.wait("the task of the same node answers", SOON, || {
        let found = answering();
        let all: BTreeSet<_> = found.iter().flatten().collect();
        let same = found.iter().all(|tasks| tasks.len() == 1) && all.len() == 2 && found[0] != found[1];
        if same { Ok(()) } else { Err(format!("{found:?}")) }
    });
    lab.ok(1, &["service", "update", "--constraint-add", "node.role==manager", "db"]);
    lab.wait("the only task answers everywhere", SOON, || {
        let found = answering();
        if found.iter().all(|tasks| *tasks == found[0]) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    lab.refused(
        1,
        &["service", "update", "--endpoint-mode", "dnsrr", "--publish-rm", "80", "db"],
        &["dnsrr", "vip"],
    );
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
}
