//! `rswarm network …`. Source: swarm-parity 1.8.

mod connect;
mod update;
mod verify;

use std::net::IpAddr;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rswarm_api::v1;
use rswarm_types::cluster::{Subnet, Subnet6};
use rswarm_types::network::{Ipam, IpamSpec, IpamSpec6};
use rswarm_types::quantity::parse_duration;
use rswarm_types::{Network, NetworkDriver, NetworkSpec, Service, Task, Timestamp};
use serde_json::{Value, json};

use crate::client::{Client, call, filters, for_each};
use crate::output::{self, Columns, natural_cmp};
use crate::service::{boolean, label};
use crate::{node, shape};

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create(Box<CreateArgs>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show networks in full
    Inspect(InspectArgs),
    /// Change a network while it is in use: a larger subnet, its address range, its labels
    Update(update::UpdateArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove all networks that nothing uses
    Prune(PruneArgs),
    /// Compare every node's kernel with what its networks should be: `-N` are missing, `+N` stale
    Verify(verify::VerifyArgs),
    /// Connect one task to a network that its service is not on, for as long as the task lives
    Connect(connect::ConnectArgs),
    /// Disconnect a task from a network that it was connected to
    Disconnect(connect::DisconnectArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// overlay (one network across all nodes) or bridge (one on each node)
    #[arg(short, long, default_value = "overlay")]
    driver: NetworkDriver,
    /// Let single tasks be connected to it, beside whole services
    #[arg(long)]
    attachable: bool,
    /// Make it the network of the routing mesh, of which there is one
    #[arg(long)]
    ingress: bool,
    /// Without a way out, and none in
    #[arg(long)]
    internal: bool,
    /// IPv6 beside IPv4: each address has a twin in the IPv6 subnet
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    ipv6: Option<bool>,
    /// IPv4; --ipv4=false with --ipv6 for a network without
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    ipv4: Option<bool>,
    /// Subnet (default: the first free one of the cluster's address pools); one of each family
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    subnet: Vec<AnySubnet>,
    /// Gateway (default: the first address of the subnet); one of each family
    #[arg(long, value_name = "IP", value_parser = address)]
    gateway: Vec<IpAddr>,
    /// Part of the IPv4 subnet that addresses are taken from
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    ip_range: Vec<AnySubnet>,
    /// Label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Option of the driver, by Docker's name: `encrypted`, `com.docker.network.driver.mtu`, and of bridges `enable_icc`,
    /// `enable_ip_masquerade` and `host_binding_ipv4`, all three behind `com.docker.network.bridge.`
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    opt: Vec<(String, String)>,
    /// What Docker tells local networks from; here it follows from the driver
    #[arg(long, hide = true, value_parser = ["swarm", "local"])]
    scope: Option<String>,
    #[arg(long, hide = true, default_value = "default", value_parser = ["default"])]
    ipam_driver: String,
    #[arg(long, hide = true, value_parser = refused)]
    aux_address: Vec<String>,
    #[arg(long, hide = true, value_parser = refused)]
    ipam_opt: Vec<String>,
    #[arg(long, hide = true, value_parser = refused)]
    config_from: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = refused)]
    config_only: Option<String>,
    name: String,
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show only networks that match: id, name, label, driver, scope, type, dangling
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Also the services and tasks on the network, of all nodes
    #[arg(short, long)]
    verbose: bool,
    /// Names or ids
    #[arg(required = true)]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Do not ask, and do not mind one that does not exist
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// `until=24h`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

const COLUMNS: Columns = Columns {
    table: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
        ("Subnet", "SUBNET"),
    ],
};

/// A subnet of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnySubnet {
    V4(Subnet),
    V6(Subnet6),
}

fn subnet(text: &str) -> Result<AnySubnet, String> {
    let parsed = match text.contains(':') {
        true => text.parse().map(AnySubnet::V6),
        false => text.parse().map(AnySubnet::V4),
    };
    parsed.map_err(|error: rswarm_types::cluster::ParseSubnetError| error.to_string())
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("expected an address like `10.213.0.1`, found `{text}`"))
}

/// For what Docker has and networks of a cluster have not.
fn refused(_: &str) -> Result<String, String> {
    Err("not supported: addresses are given by the cluster, and a network's settings are its own".to_owned())
}

impl CreateArgs {
    fn ipam(&self) -> anyhow::Result<IpamSpec> {
        let of = |list: &[AnySubnet]| -> (Vec<Subnet>, Vec<Subnet6>) {
            let v4 = list.iter().filter_map(|any| if let AnySubnet::V4(v4) = any { Some(*v4) } else { None });
            let v6 = list.iter().filter_map(|any| if let AnySubnet::V6(v6) = any { Some(*v6) } else { None });
            (v4.collect(), v6.collect())
        };
        let ((subnets, subnets6), (ranges, ranges6)) = (of(&self.subnet), of(&self.ip_range));
        let gateways =
            self.gateway.iter().filter_map(|at| if let IpAddr::V4(v4) = at { Some(*v4) } else { None });
        let gateways6 =
            self.gateway.iter().filter_map(|at| if let IpAddr::V6(v6) = at { Some(*v6) } else { None });
        let (subnet6, gateway6) =
            (only("--subnet", &subnets6)?, only("--gateway", &gateways6.collect::<Vec<_>>())?);
        if let Some(range) = ranges6.first() {
            anyhow::bail!(
                "--ip-range {range}: IPv6 addresses are the twins of IPv4 ones, so only those have a range"
            );
        }
        let (ipv4, ipv6) = (self.ipv4.unwrap_or(true), self.ipv6.unwrap_or_default());
        if !ipv4 && !ipv6 {
            anyhow::bail!("--ipv4=false leaves the network no addresses: add --ipv6");
        }
        let given = subnet6.map(|subnet| format!("--subnet {subnet}"));
        if let Some(given) =
            given.or(gateway6.map(|gateway| format!("--gateway {gateway}"))).filter(|_| !ipv6)
        {
            anyhow::bail!("{given} is IPv6: add --ipv6 for a network with both families");
        }
        Ok(IpamSpec {
            subnet: only("--subnet", &subnets)?,
            gateway: only("--gateway", &gateways.collect::<Vec<_>>())?,
            range: only("--ip-range", &ranges)?,
            ipv6: ipv6.then_some(IpamSpec6 { subnet: subnet6, gateway: gateway6, alone: !ipv4 }),
        })
    }

    fn spec(&self) -> anyhow::Result<NetworkSpec> {
        let mut spec = NetworkSpec::new(self.name.as_str(), self.driver);
        (spec.internal, spec.attachable, spec.ingress) = (self.internal, self.attachable, self.ingress);
        spec.labels = self.label.iter().cloned().collect();
        spec.options = self.opt.iter().cloned().collect();
        spec.ipam = self.ipam()?;
        let scope = if self.driver == NetworkDriver::Overlay { "swarm" } else { "local" };
        match &self.scope {
            Some(given) if given != scope => anyhow::bail!(
                "--scope {given} does not fit driver `{}`: expected {scope}, or leave it out",
                self.driver
            ),
            _ => Ok(spec),
        }
    }
}

/// Of what may be given once for each family.
fn only<T: Copy>(flag: &str, values: &[T]) -> anyhow::Result<Option<T>> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(*value)),
        _ => anyhow::bail!(
            "{flag} is given {} times for one family: a network has one subnet of IPv4 and one of IPv6",
            values.len()
        ),
    }
}

/// Every network of the cluster.
pub async fn all(client: &Client) -> anyhow::Result<Vec<Network>> {
    list(client, Vec::new()).await
}

async fn list(client: &Client, filters: Vec<v1::Filter>) -> anyhow::Result<Vec<Network>> {
    let networks = call!(client, control.list_networks(v1::ListNetworksRequest { filters }))?.networks;
    Ok(networks.into_iter().map(Network::try_from).collect::<Result<_, _>>()?)
}

pub async fn run(client: &Client, command: NetworkCommand) -> anyhow::Result<()> {
    match command {
        NetworkCommand::Create(args) => create(client, &args).await,
        NetworkCommand::Ls(args) => ls(client, args).await,
        NetworkCommand::Inspect(args) => inspect(client, args).await,
        NetworkCommand::Update(args) => update::run(client, &args).await,
        NetworkCommand::Rm(args) => rm(client, args).await,
        NetworkCommand::Prune(args) => prune(client, args).await,
        NetworkCommand::Verify(args) => verify::run(client, args).await,
        NetworkCommand::Connect(args) => connect::connect(client, args).await,
        NetworkCommand::Disconnect(args) => connect::disconnect(client, args).await,
    }
}

async fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<()> {
    let request = v1::CreateNetworkRequest { spec: Some((&args.spec()?).into()) };
    let network = call!(client, control.create_network(request))?.network.unwrap_or_default();
    Ok(output::print(&format!("{}\n", network.id))?)
}

async fn ls(client: &Client, args: LsArgs) -> anyhow::Result<()> {
    let mut networks = list(client, filters(&args.filter)?).await?;
    networks.sort_by(|a, b| natural_cmp(&a.spec.name, &b.spec.name));
    let id = |network: &Network| {
        if args.no_trunc { network.id.to_string() } else { network.id.short() }
    };
    if args.quiet && args.format.is_none() {
        let ids: String = networks.iter().map(|network| format!("{}\n", id(network))).collect();
        return Ok(output::print(&ids)?);
    }
    let row = |network: &Network| -> Value {
        let labels = network.spec.labels.iter().map(|(key, value)| format!("{key}={value}"));
        json!({
            "ID": id(network),
            "Name": network.spec.name,
            "Driver": network.spec.driver,
            "Scope": shape::scope(network),
            "IPv4": network.ipam.is_none_or(|ipam| !ipam.is_ipv6_alone()).to_string(),
            "IPv6": network.ipam.is_some_and(|ipam| ipam.ipv6.is_some()).to_string(),
            "Internal": network.spec.internal.to_string(),
            "Labels": labels.collect::<Vec<_>>().join(","),
            "CreatedAt": shape::time(network.meta.created_at),
            "Subnet": network.ipam.map(Ipam::shown_subnet).unwrap_or_default(),
        })
    };
    output::list(COLUMNS, args.format.as_deref(), &networks.iter().map(row).collect::<Vec<_>>())
}

async fn inspect(client: &Client, args: InspectArgs) -> anyhow::Result<()> {
    let nodes = if args.verbose { node::names(client).await? } else { Default::default() };
    let mut shapes = Vec::new();
    let found = for_each(&args.networks, async |name| {
        let request = v1::GetNetworkRequest { network: name.to_owned(), verbose: args.verbose };
        let response = call!(client, control.get_network(request))?;
        let network = Network::try_from(response.network.unwrap_or_default())?;
        let services = response.services.into_iter().map(Service::try_from).collect::<Result<Vec<_>, _>>()?;
        let tasks = response.tasks.into_iter().map(Task::try_from).collect::<Result<Vec<_>, _>>()?;
        let verbose = args.verbose.then_some((&services[..], &tasks[..]));
        shapes.push(shape::network(&network, verbose, &nodes));
        Ok(())
    });
    let found = found.await;
    output::inspect(args.format.as_deref(), &shapes)?;
    found
}

async fn rm(client: &Client, args: RmArgs) -> anyhow::Result<()> {
    for_each(&args.networks, async |name| {
        let get = v1::GetNetworkRequest { network: name.to_owned(), verbose: false };
        let network = match client.control().get_network(get).await {
            Ok(response) => response.into_inner().network.unwrap_or_default(),
            Err(status) if args.force && status.code() == tonic::Code::NotFound => return Ok(()),
            Err(status) => return Err(client.error(&status).into()),
        };
        if network.spec.is_some_and(|spec| spec.ingress) && !args.force {
            let question = format!(
                "`{name}` carries the ports that services publish in mode ingress: without it none can. Remove it?"
            );
            if !output::confirm(&question)? {
                return Ok(());
            }
        }
        call!(client, control.remove_network(v1::RemoveNetworkRequest { network: network.id }))?;
        println!("{name}");
        Ok(())
    })
    .await
}

async fn prune(client: &Client, args: PruneArgs) -> anyhow::Result<()> {
    let mut filters = filters(&args.filter)?;
    for value in filters.iter_mut().filter(|filter| filter.key == "until").flat_map(|f| &mut f.values) {
        *value = created_before(value, Timestamp::now())?.0.to_string();
    }
    if !args.force && !output::confirm("This removes all networks that no service and no task uses. Go on?")?
    {
        return Ok(());
    }
    let removed = call!(client, control.prune_networks(v1::PruneNetworksRequest { filters }))?.removed;
    if removed.is_empty() {
        return Ok(());
    }
    Ok(output::print(&format!("Deleted Networks:\n{}\n", removed.join("\n")))?)
}

/// `24h`, or a date and time.
fn created_before(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    if let Ok(age) = parse_duration(text) {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        return Ok(Timestamp(now.0.saturating_sub(age)));
    }
    let at: jiff::Timestamp = text
        .parse()
        .with_context(|| format!("invalid filter `until={text}`: expected an age like 24h, or a time"))?;
    Ok(Timestamp(u64::try_from(at.as_nanosecond()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rswarm_types::network::Ipam6;
    use rswarm_types::{Meta, NetworkId};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: NetworkCommand,
    }

    fn spec(args: &[&str]) -> Result<NetworkSpec, String> {
        let words = ["network", "create"].iter().chain(args).copied();
        match Line::try_parse_from(words).map_err(|error| error.to_string())?.command {
            NetworkCommand::Create(args) => args.spec().map_err(|error| error.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn each_flag_sets_its_field() {
        let check = |args: &[&str], change: &dyn Fn(&mut NetworkSpec)| {
            let mut expected = NetworkSpec::new("front", NetworkDriver::Overlay);
            change(&mut expected);
            let args: Vec<_> = args.iter().copied().chain(["front"]).collect();
            assert_eq!(spec(&args), Ok(expected), "{args:?}");
        };
        check(&[], &|_| {});
        check(&["-d", "bridge"], &|s| s.driver = NetworkDriver::Bridge);
        check(&["--scope", "swarm", "--ipam-driver", "default", "--ipv4", "--ipv6=false"], &|_| {});
        check(&["--internal", "--attachable"], &|s| (s.internal, s.attachable) = (true, true));
        check(&["--ingress"], &|s| s.ingress = true);
        check(&["--subnet", "10.9.0.0/16", "--ip-range", "10.9.8.0/24", "--gateway", "10.9.0.9"], &|s| {
            s.ipam.subnet = Some("10.9.0.0/16".parse().unwrap());
            s.ipam.range = Some("10.9.8.0/24".parse().unwrap());
            s.ipam.gateway = Some([10, 9, 0, 9].into());
        });
        check(&["--ipv6"], &|s| s.ipam.ipv6 = Some(IpamSpec6::default()));
        let both = ["--ipv6", "--subnet", "fd00:1::/64", "--gateway", "fd00:1::9", "--subnet", "10.9.0.0/16"];
        check(&both, &|s| {
            s.ipam.subnet = Some("10.9.0.0/16".parse().unwrap());
            let (subnet, gateway) = ("fd00:1::/64".parse().unwrap(), "fd00:1::9".parse().unwrap());
            s.ipam.ipv6 = Some(IpamSpec6 { subnet: Some(subnet), gateway: Some(gateway), alone: false });
        });
        check(&["--ipv6", "--ipv4=false"], &|s| {
            s.ipam.ipv6 = Some(IpamSpec6 { alone: true, ..IpamSpec6::default() });
        });
        check(&["--label", "a=b", "--label", "c"], &|s| {
            s.labels = [("a".into(), "b".into()), ("c".into(), String::new())].into();
        });
        check(&["-o", "com.docker.network.driver.mtu=1400", "--opt", "encrypted"], &|s| {
            let mtu = ("com.docker.network.driver.mtu".into(), "1400".into());
            s.options = [mtu, ("encrypted".into(), String::new())].into();
        });
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (args, part) in [
            (&["--subnet", "10.9.0.1/16"][..], "expected a subnet like"),
            (&["--subnet", "fd00::1/64"], "expected a subnet like `fd00:1::/64`"),
            (&["--subnet", "fd00::/64"], "--subnet fd00::/64 is IPv6: add --ipv6"),
            (&["--gateway", "fd00::1"], "--gateway fd00::1 is IPv6: add --ipv6"),
            (&["--ipv6", "--ip-range", "fd00::/96"], "--ip-range fd00::/96: IPv6 addresses are the twins"),
            (&["--ipv6", "--subnet", "fd00::/64", "--subnet", "fd01::/64"], "--subnet is given 2 times"),
            (&["--gateway", "10.9.0.256"], "expected an address like"),
            (&["--subnet", "10.9.0.0/16", "--subnet", "10.8.0.0/16"], "--subnet is given 2 times"),
            (&["--ipv4=false"], "--ipv4=false leaves the network no addresses: add --ipv6"),
            (&["--aux-address", "a=10.9.0.1"], "not supported"),
            (&["--ipam-driver", "dhcp"], "dhcp"),
            (&["--config-only"], "not supported"),
            (&["--scope", "local"], "--scope local does not fit driver `overlay`"),
            (&["-d", "macvlan"], "macvlan"),
        ] {
            let args: Vec<_> = args.iter().copied().chain(["front"]).collect();
            let error = spec(&args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
        assert!(Line::try_parse_from(["network", "connect", "--alias", "x", "front", "web"]).is_ok());
    }

    #[test]
    fn a_time_for_pruning_is_an_age_or_a_date() {
        let now = Timestamp(10_000_000_000_000);
        assert_eq!(created_before("1h", now).unwrap(), Timestamp(10_000_000_000_000 - 3_600_000_000_000));
        assert_eq!(created_before("1970-01-01T00:00:01Z", now).unwrap(), Timestamp(1_000_000_000));
        assert!(created_before("soon", now).unwrap_err().to_string().contains("until=soon"));
    }

    #[test]
    fn a_network_has_docker_s_shape() {
        let mut spec = NetworkSpec::new("front", NetworkDriver::Overlay);
        spec.ipam.range = Some("10.9.8.0/24".parse().unwrap());
        let network = Network {
            id: NetworkId::from_bytes([3; 16]),
            meta: Meta::default(),
            ipam: Some(Ipam {
                subnet: "10.9.0.0/16".parse().unwrap(),
                gateway: [10, 9, 0, 1].into(),
                ipv6: Some(Ipam6 {
                    subnet: "fd00:1::/64".parse().unwrap(),
                    gateway: "fd00:1::1".parse().unwrap(),
                    counted_from: None,
                    alone: false,
                }),
            }),
            spec,
            vni: Some(4097),
        };
        let shape = shape::network(&network, None, &Default::default());
        let config = json!([
            { "Subnet": "10.9.0.0/16", "IPRange": "10.9.8.0/24", "Gateway": "10.9.0.1" },
            { "Subnet": "fd00:1::/64", "Gateway": "fd00:1::1" },
        ]);
        assert_eq!(shape["EnableIPv6"], json!(true));
        assert_eq!((&shape["Scope"], &shape["Driver"]), (&json!("swarm"), &json!("overlay")));
        assert_eq!(shape["IPAM"]["Config"], config);
        assert_eq!(shape["Options"]["com.docker.network.driver.overlay.vxlanid_list"], "4097");
        assert_eq!(shape.get("Services"), None);
        let mut alone = network.clone();
        alone.spec.ipam.range = None;
        alone.ipam.as_mut().unwrap().ipv6.as_mut().unwrap().alone = true;
        let shape = shape::network(&alone, None, &Default::default());
        assert_eq!((&shape["EnableIPv4"], &shape["EnableIPv6"]), (&json!(false), &json!(true)));
        assert_eq!(shape["IPAM"]["Config"], json!([{ "Subnet": "fd00:1::/64", "Gateway": "fd00:1::1" }]));
        let verbose = shape::network(&network, Some((&[], &[])), &Default::default());
        assert_eq!(verbose["Services"], json!({}));
    }
}
