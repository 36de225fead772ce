//! Writes the map of a large network, and says how long reading it takes: for `docs/benchmarks.md`.
//!
//! Usage: `measure FILE`. Its network is 10.0.0.0/8 with `service-0` to `service-999` of ten tasks each; 10.1.0.1 is
//! one of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rswarm_resolver::Names;
use rswarm_types::netmap::{EndpointState, MapAttachment, MapEndpoint, MapNetwork, MapService, NetworkMap};
use rswarm_types::service::EndpointMode;
use rswarm_types::{NetworkId, NodeId, ServiceId, TaskId};

const SERVICES: u32 = 1000;
const TASKS: u32 = 10;
const ROUNDS: usize = 51;

fn main() {
    let path = std::env::args_os().nth(1).expect("a file to write the map to");
    let map = map();
    std::fs::write(&path, rmp_serde::to_vec_named(&map).expect("a map can be encoded"))
        .expect("a file to write");
    let bytes = std::fs::read(&path).expect("the file just written");
    let decode = median(|| rmp_serde::from_slice::<NetworkMap>(&bytes).expect("the map just written"));
    let index = median(|| Names::new(&map));
    println!(
        "{SERVICES} services of {TASKS} tasks, {} bytes: decoded in {decode:?}, index made in {index:?}",
        bytes.len()
    );
}

fn median<T>(mut work: impl FnMut() -> T) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let made = work();
            let took = start.elapsed();
            drop(made);
            took
        })
        .collect();
    times.sort();
    times[ROUNDS / 10]
}

fn map() -> NetworkMap {
    let id = |number: u32| (u128::from(number) << 96 | 0x5eed).to_be_bytes();
    let network = NetworkId::from_bytes(id(1));
    let mut map = NetworkMap::default();
    let map_network = MapNetwork {
        name: "large".to_owned(),
        vni: 4096,
        subnet: "10.0.0.0/8".parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        mtu: 1450,
        internal: false,
        ingress: false,
        encrypted: false,
    };
    map.networks.insert(network, map_network);
    for number in 0..SERVICES {
        let service = ServiceId::from_bytes(id(number));
        let vip = Some(Ipv4Addr::from(0x0a00_0002 + number));
        let attachment = MapAttachment { vip, aliases: vec![format!("alias-{number}")] };
        let map_service = MapService {
            name: format!("service-{number}"),
            mode: EndpointMode::Vip,
            networks: BTreeMap::from([(network, attachment)]),
            ports: vec![],
        };
        map.services.insert(service, map_service);
        for slot in 1..=TASKS {
            let place = number * TASKS + slot;
            let endpoint = MapEndpoint {
                service,
                slot: slot.into(),
                node: NodeId::from_bytes(id(place % 100)),
                addresses: BTreeMap::from([(network, Ipv4Addr::from(0x0a01_0000 + place))]),
                state: EndpointState::Ready,
                hostname: String::new(),
            };
            map.endpoints.insert(TaskId::from_bytes(id(place)), endpoint);
        }
    }
    map
}
