//! `service ls`, `service ps` and `service inspect`. Source: swarm-parity 1.4.

use clap::Args;
use rswarm_api::v1;
use rswarm_types::Service;
use rswarm_types::service::{PortConfig, PublishMode, ServiceMode};
use serde_json::{Value, json};

use super::{get, networks, pretty::pretty};
use crate::client::{Client, call, filters};
use crate::network;
use crate::output::{self, Columns, natural_cmp};
use crate::shape;
use crate::task::{self, familiar_image};

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show only services that match: id, name, label, mode, runtime
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    list: task::ListArgs,
    /// Names or ids
    #[arg(required = true)]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// For reading
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// Names or ids
    #[arg(required = true)]
    services: Vec<String>,
}

const COLUMNS: Columns = Columns {
    table: "{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    headings: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
};

/// A service with the tasks that the answering manager counted.
struct Counted {
    service: Service,
    counts: v1::ServiceCounts,
}

pub async fn ls(client: &Client, args: LsArgs) -> anyhow::Result<()> {
    let request = v1::ListServicesRequest { filters: filters(&args.filter)? };
    let services = call!(client, control.list_services(request))?.services;
    let counted = |wire: v1::Service| -> anyhow::Result<Counted> {
        let counts = wire.counts.unwrap_or_default();
        Ok(Counted { service: Service::try_from(wire)?, counts })
    };
    let mut services = services.into_iter().map(counted).collect::<Result<Vec<_>, _>>()?;
    services.sort_by(|a, b| natural_cmp(&a.service.spec.name, &b.service.spec.name));
    if args.quiet && args.format.is_none() {
        let ids: String = services.iter().map(|s| format!("{}\n", s.service.id.short())).collect();
        return Ok(output::print(&ids)?);
    }
    output::list(COLUMNS, args.format.as_deref(), &services.iter().map(row).collect::<Vec<_>>())
}

fn row(Counted { service, counts }: &Counted) -> Value {
    let spec = &service.spec;
    let limit = match spec.task.placement.max_replicas {
        0 => String::new(),
        limit => format!(" (max {limit} per node)"),
    };
    let mode = match spec.mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
    };
    json!({
        "ID": service.id.short(),
        "Name": spec.name,
        "Mode": mode,
        "Replicas": format!("{}/{}{limit}", counts.running, counts.desired),
        "Image": familiar_image(&spec.task.container.image),
        "Ports": ports(&service.endpoint.ports),
    })
}

/// Ports of the mesh, with consecutive ones as ranges: `*:80-81->80-81/tcp`.
fn ports(ports: &[PortConfig]) -> String {
    let mut mesh: Vec<_> = ports.iter().filter(|port| port.mode == PublishMode::Ingress).collect();
    mesh.sort_by_key(|port| (port.protocol, port.host_ip, port.interface, port.published, port.target));
    let mut runs: Vec<Vec<&PortConfig>> = Vec::new();
    for port in mesh {
        let follows = |last: &&PortConfig| {
            let next = |a: u16, b: u16| a.checked_add(1) == Some(b);
            let place = |port: &PortConfig| (port.protocol, port.host_ip, port.interface);
            place(last) == place(port)
                && next(last.target, port.target)
                && last.published.zip(port.published).is_some_and(|(a, b)| next(a, b))
        };
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(follows) => run.push(port),
            _ => runs.push(vec![port]),
        }
    }
    let run = |run: &Vec<&PortConfig>| {
        let (first, last) = (run[0], run[run.len() - 1]);
        let range = |a: u16, b: u16| if a == b { a.to_string() } else { format!("{a}-{b}") };
        let published = first.published.zip(last.published).map_or_else(String::new, |(a, b)| range(a, b));
        let at = task::at(first.host_ip, first.interface);
        format!("{at}:{published}->{}/{}", range(first.target, last.target), first.protocol)
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

pub async fn ps(client: &Client, args: PsArgs) -> anyhow::Result<()> {
    let (found, errors) = find(client, &args.services).await;
    if !found.is_empty() {
        let values = found.iter().map(|service| service.id.to_string()).collect();
        task::list(client, &args.list, v1::Filter { key: "service".to_owned(), values }).await?;
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

pub async fn inspect(client: &Client, args: InspectArgs) -> anyhow::Result<()> {
    let (found, errors) = find(client, &args.services).await;
    if args.pretty {
        let networks = if found.is_empty() { Vec::new() } else { networks(client).await? };
        let texts: Vec<String> = found.iter().map(|service| pretty(service, &networks)).collect();
        output::print(&texts.join("\n"))?;
    } else {
        let networks = if found.iter().all(|service| service.endpoint.vips.is_empty()) {
            Vec::new()
        } else {
            network::all(client).await?
        };
        let shapes: Vec<_> = found.iter().map(|service| shape::service(service, &networks)).collect();
        output::inspect(args.format.as_deref(), &shapes)?;
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

/// The services there are, and what is wrong with the others.
async fn find(client: &Client, names: &[String]) -> (Vec<Service>, Vec<String>) {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        match get(client, name).await {
            Ok(service) => found.push(service),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    (found, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_types::service::Protocol;

    #[test]
    fn consecutive_ports_are_one_range_and_host_ports_are_not_shown() {
        let port = |published, target, protocol, mode| PortConfig {
            protocol,
            target,
            published,
            mode,
            host_ip: None,
            interface: None,
        };
        let (tcp, udp, mesh) = (Protocol::Tcp, Protocol::Udp, PublishMode::Ingress);
        for (list, expected) in [
            (vec![], ""),
            (vec![port(Some(80), 8080, tcp, mesh)], "*:80->8080/tcp"),
            (
                vec![
                    port(Some(81), 81, tcp, mesh),
                    port(Some(80), 80, tcp, mesh),
                    port(Some(90), 90, tcp, mesh),
                ],
                "*:80-81->80-81/tcp, *:90->90/tcp",
            ),
            (
                vec![port(Some(53), 53, tcp, mesh), port(Some(54), 54, udp, mesh)],
                "*:53->53/tcp, *:54->54/udp",
            ),
            (vec![port(Some(80), 80, tcp, PublishMode::Host)], ""),
            (
                vec![
                    PortConfig {
                        host_ip: Some(std::net::IpAddr::from([127, 0, 0, 1])),
                        ..port(Some(81), 81, tcp, mesh)
                    },
                    port(Some(80), 80, tcp, mesh),
                ],
                "*:80->80/tcp, 127.0.0.1:81->81/tcp",
            ),
            (
                [80, 81, 82]
                    .map(|number| PortConfig {
                        interface: (number != 81).then(|| "eth0".parse().unwrap()),
                        ..port(Some(number), number, tcp, mesh)
                    })
                    .to_vec(),
                "*:81->81/tcp, eth0:80->80/tcp, eth0:82->82/tcp",
            ),
            (
                [80, 81]
                    .map(|number| PortConfig {
                        host_ip: Some("fd00::1".parse().unwrap()),
                        ..port(Some(number), number, tcp, mesh)
                    })
                    .to_vec(),
                "[fd00::1]:80-81->80-81/tcp",
            ),
        ] {
            assert_eq!(ports(&list), expected);
        }
    }
}
