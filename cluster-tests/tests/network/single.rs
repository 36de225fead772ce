//! Single tasks that are connected to networks, and networks of a single node.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use rswarm_cluster_tests::ClusterLab;
use rswarm_cluster_tests::kernel::{output, resolve, resolve6};
use rswarm_lab::{get, page};
use rswarm_net::run_in_netns;

use super::{MONITOR, PATIENCE, SOON, gateway, namespaces, pages};

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
    let front = *lab.until_known(first, gateway(&lab, "front"), "web", 1).first().expect("one");
    assert_eq!(
        pages(first, front, 80, 40).into_iter().map(|(task, _)| task).collect::<BTreeSet<_>>().len(),
        2
    );
    lab.until_kernels_are_exact(1, SOON);
    lab.refused(1, &["network", "rm", "tools"], &["tools", "in use"]);

    // They are let in like all tasks of their services.
    let probe = *resolve(&solo, server, "probe").expect("a known name").first().expect("an address");
    let reaches = |netns: &Path| {
        let ask = || (0..6).map(|_| get((probe, 80).into(), PATIENCE).is_ok()).collect::<BTreeSet<_>>();
        run_in_netns(netns, ask).expect("the task's namespace")
    };
    lab.ok(1, &["service", "update", "--allow-from-add", "solo", "probe"]);
    lab.wait("its service's name counts", SOON, || match (reaches(&solo), reaches(first)) {
        (solo, web) if (&solo, &web) == (&[true].into(), &[false].into()) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.ok(1, &["service", "update", "--allow-from-rm", "solo", "probe"]);

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

/// The one task of `hermit` gets out only by networks that it is connected to: always by one that it is on.
#[test]
fn the_way_out_moves_on_when_the_network_that_it_led_by_goes() {
    let Some(lab) = ClusterLab::form("way-out", 1, 0) else { return };
    for network in
        [&["--internal", "vault"][..], &["--attachable", "--ipv6", "wide"], &["-d", "bridge", "local"]]
    {
        lab.ok(1, &[&["network", "create"][..], network].concat());
    }
    lab.create(1, "hermit", 1, &["--network", "vault", MONITOR], &[]);
    lab.until_running(1, "hermit", 1, SOON);
    let netns = namespaces(&lab, "hermit").remove(0).1;
    let leads_by = |networks: &[&str], verb: &str, network: &str, expected: Option<&str>| {
        lab.ok(1, &["network", verb, network, "hermit.1"]);
        let expected = expected.map(|network| gateway(&lab, network).to_string());
        lab.wait(&format!("{verb} {network}: {networks:?}"), SOON, || {
            let links = output(&netns, "ip -brief link").matches("eth").count();
            let routes = output(&netns, "ip route show default");
            let via: Vec<&str> = routes.lines().filter_map(|line| line.split(' ').nth(2)).collect();
            let six = output(&netns, "ip -6 route show default").lines().count();
            let wanted = (networks.len(), expected.as_deref().into_iter().collect::<Vec<_>>());
            match (links, via) {
                found if found == wanted => Ok(six),
                found => Err(format!("{found:?}, not {wanted:?}")),
            }
        })
    };
    leads_by(&["vault", "wide"], "connect", "wide", Some("wide"));
    leads_by(&["vault", "wide", "local"], "connect", "local", Some("wide"));
    let six = leads_by(&["vault", "local"], "disconnect", "wide", Some("local"));
    assert_eq!(six, 0);
    leads_by(&["vault", "local", "wide"], "connect", "wide", Some("local"));
    let six = leads_by(&["vault", "wide"], "disconnect", "local", Some("wide"));
    assert_eq!(six, 1, "in both families");
    leads_by(&["vault"], "disconnect", "wide", None);
    assert!(lab.ok(1, &["network", "verify"]).contains("as it should be"));
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
            let found = lab.until_known(&netns, server, name, 1);
            let own = found.first().expect("one task");
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
