//! The lab of namespaces as hosts.

use std::net::{Ipv4Addr, TcpListener};

use rswarm_net::lab::{Lab, LabSpec};

use crate::rig::{fetch, output, serve, wait_until};

#[test]
fn hosts_reach_each_other_until_the_cable_is_cut() {
    needs_kernel!();
    let name = format!("cut{}", std::process::id());
    let lab = Lab::create(LabSpec::new(&name, 3)).unwrap();
    assert_eq!(Lab::namespaces_of(&name).len(), 4);
    let (first, third) = (lab.host(1), lab.host(3));
    assert_eq!(third.address, Ipv4Addr::new(10, 77, 0, 3));
    serve(third.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()).unwrap(), "third");
    let ask = || first.run(|| fetch(third.address, 80)).unwrap();
    assert_eq!(ask().unwrap(), "third saw 10.77.0.1");
    third.cut().unwrap();
    ask().unwrap_err();
    third.heal().unwrap();
    wait_until("the cable is back", || ask().is_ok());
    let shown = output(first.command("ip").unwrap().args(["-o", "-4", "addr", "show", "dev", "eth0"]));
    assert!(shown.contains("10.77.0.1/24"), "{shown}");
    lab.destroy().unwrap();
    assert!(Lab::namespaces_of(&name).is_empty());
}

#[test]
fn a_kept_lab_is_found_and_ended_by_name() {
    needs_kernel!();
    let name = format!("keep{}", std::process::id());
    let hosts = Lab::create(LabSpec { gateway: true, ..LabSpec::new(&name, 1) }).unwrap().keep();
    assert!(hosts[0].netns.exists());
    let routes = output(hosts[0].command("ip").unwrap().args(["route", "show", "default"]));
    assert!(routes.starts_with("default via 10.77.0.254 dev eth0"), "{routes}");
    Lab::destroy_named(&name).unwrap();
    assert!(Lab::namespaces_of(&name).is_empty() && !hosts[0].netns.exists());
    Lab::destroy_named(&name).unwrap();
}

#[test]
fn senseless_labs_are_refused() {
    for spec in [
        LabSpec::new("", 1),
        LabSpec::new("../x", 1),
        LabSpec::new("x", 0),
        LabSpec { prefix_len: 29, ..LabSpec::new("x", 1) },
        LabSpec { subnet: Ipv4Addr::new(10, 0, 0, 1), ..LabSpec::new("x", 1) },
        LabSpec { prefix_len: 28, ..LabSpec::new("x", 14) },
    ] {
        let shown = format!("{spec:?}");
        assert!(Lab::create(spec).is_err(), "{shown}");
    }
}
