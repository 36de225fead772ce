//! `rswarm network update`: what can change of a network while tasks are on it. Docker has nothing like it.

use clap::Args;
use rswarm_api::v1;
use rswarm_types::cluster::Subnet;
use rswarm_types::{Network, NetworkSpec};

use super::AnySubnet;
use crate::client::{Client, call};
use crate::output;
use crate::service::label;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct UpdateArgs {
    /// Larger IPv4 subnet that contains the present one (driver overlay): tasks go on, with their addresses
    #[arg(long, value_name = "CIDR", value_parser = subnet, group = "change")]
    subnet: Option<Subnet>,
    /// Part of the IPv4 subnet that addresses are taken from
    #[arg(long, value_name = "CIDR", value_parser = subnet, group = "change")]
    ip_range: Option<Subnet>,
    /// Add or change a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, group = "change")]
    label_add: Vec<(String, String)>,
    /// Remove a label
    #[arg(long, value_name = "KEY", group = "change")]
    label_rm: Vec<String>,
    /// Name or id
    network: String,
}

fn subnet(text: &str) -> Result<Subnet, String> {
    match super::subnet(text)? {
        AnySubnet::V4(subnet) => Ok(subnet),
        AnySubnet::V6(_) => {
            Err("the IPv6 subnet has room for every IPv4 one, and stays: expected a subnet like \
                                 `10.213.0.0/16`"
                .to_owned())
        }
    }
}

impl UpdateArgs {
    /// What the network should be.
    fn spec(&self, network: &Network) -> NetworkSpec {
        let mut spec = network.spec.clone();
        spec.labels.retain(|key, _| !self.label_rm.contains(key));
        spec.labels.extend(self.label_add.iter().cloned());
        if self.subnet.is_some() || self.ip_range.is_some() {
            // A range lies in a subnet that is told, also if it was chosen by the cluster.
            spec.ipam.subnet = self.subnet.or(network.ipam.map(|ipam| ipam.subnet));
            spec.ipam.range = self.ip_range.or(spec.ipam.range);
        }
        spec
    }
}

pub async fn run(client: &Client, args: &UpdateArgs) -> anyhow::Result<()> {
    let get = v1::GetNetworkRequest { network: args.network.clone(), verbose: false };
    let network = Network::try_from(call!(client, control.get_network(get))?.network.unwrap_or_default())?;
    let spec = args.spec(&network);
    let (id, version) = (network.id.to_string(), network.meta.version.0);
    let request = v1::UpdateNetworkRequest { id, version, spec: Some((&spec).into()) };
    call!(client, control.update_network(request))?;
    if let Some(range) = spec.ipam.range.filter(|_| args.subnet.is_some() && args.ip_range.is_none()) {
        eprintln!("addresses are still taken from the range {range} alone: change it by --ip-range");
    }
    Ok(output::print(&format!("{}\n", args.network))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rswarm_types::network::Ipam;
    use rswarm_types::{Meta, NetworkDriver, NetworkId};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn network() -> Network {
        let mut spec = NetworkSpec::new("front", NetworkDriver::Overlay);
        spec.labels = [("a".into(), "b".into()), ("c".into(), "d".into())].into();
        let (subnet, gateway) = ("10.0.16.0/20".parse().unwrap(), [10, 0, 16, 1].into());
        let ipam = Some(Ipam { subnet, gateway, ipv6: None });
        Network { id: NetworkId::from_bytes([3; 16]), meta: Meta::default(), spec, ipam, vni: Some(4097) }
    }

    fn spec(args: &[&str]) -> Result<NetworkSpec, String> {
        let words = ["update"].iter().chain(args).chain(&["front"]).copied();
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(line.args.spec(&network()))
    }

    #[test]
    fn each_flag_changes_its_field_alone() {
        let check = |args: &[&str], change: &dyn Fn(&mut NetworkSpec)| {
            let mut expected = network().spec;
            change(&mut expected);
            assert_eq!(spec(args), Ok(expected), "{args:?}");
        };
        let parse = |text: &str| Some(text.parse().unwrap());
        check(&["--subnet", "10.0.0.0/16"], &|s| s.ipam.subnet = parse("10.0.0.0/16"));
        check(&["--ip-range", "10.0.17.0/24"], &|s| {
            (s.ipam.subnet, s.ipam.range) = (parse("10.0.16.0/20"), parse("10.0.17.0/24"));
        });
        check(&["--label-add", "a=e", "--label-rm", "c"], &|s| s.labels = [("a".into(), "e".into())].into());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (args, part) in [
            (&[][..], "--subnet <CIDR>"),
            (&["--subnet", "10.0.0.1/16"], "expected a subnet like `10.213.0.0/16`"),
            (&["--subnet", "fd00::/64"], "the IPv6 subnet has room for every IPv4 one"),
            (&["--gateway", "10.0.0.1"], "unexpected argument"),
        ] {
            let error = spec(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
