//! Writes the map of a large network, and says how long reading it takes: for `docs/benchmarks.md`.
//!
//! Usage: `measure RUN_ROOT`. The network is 10.0.0.0/8 with `service-0` to `service-999` of ten tasks each; 10.1.0.1
//! is one of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rswarm_resolver::{MapReader, MapWriter, Names};
use rswarm_types::netmap::{
    EndpointState, MapAttachment, MapEndpoint, MapNetwork, MapService, NetworkChange, NetworkMap,
};
use rswarm_types::service::EndpointMode;
use rswarm_types::{NetworkId, NodeId, ServiceId, TaskId, Version};

const SERVICES: u32 = 1000;
const TASKS: u32 = 10;
const ROUNDS: usize = 51;

fn main() {
    let run_root = std::env::args_os().nth(1).map(PathBuf::from).expect("a run root to write the map to");
    let mut map = map();
    let mut writer = MapWriter::create(&run_root, &map).expect("a run root that can be written to");
    let whole = median(|| MapReader::new(&run_root).refresh().expect("the map just written"));
    let index = median(|| Names::new(&map));
    println!("{SERVICES} services of {TASKS} tasks: read whole in {whole:?}, index made in {index:?}");

    let mut reader = MapReader::new(&run_root);
    reader.refresh().expect("the map just written");
    let (mut write, mut read) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (id, endpoint) = map.endpoints.iter().nth(round).expect("more tasks than rounds");
        let draining = MapEndpoint { state: EndpointState::Draining, ..endpoint.clone() };
        let index = Version(map.index.0 + 1);
        let set = NetworkMap { index, endpoints: BTreeMap::from([(*id, draining)]), ..NetworkMap::default() };
        let change = NetworkChange { index, set, ..NetworkChange::default() };
        map.apply(change.clone());
        write.push(timed(|| writer.change(&change, &map).expect("the file just written")));
        read.push(timed(|| reader.refresh().expect("the change just written")));
    }
    println!("a change of one task: written in {:?}, read in {:?}", middle(write), middle(read));
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let made = work();
    let took = start.elapsed();
    drop(made);
    took
}

fn median<T>(mut work: impl FnMut() -> T) -> Duration {
    middle((0..ROUNDS).map(|_| timed(&mut work)).collect())
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
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
        ipv6: None,
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
            ..MapService::default()
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
                nameservers: Vec::new(),
                joined: None,
                enclosed: false,
            };
            map.endpoints.insert(TaskId::from_bytes(id(place)), endpoint);
        }
    }
    map
}
