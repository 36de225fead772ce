//! `rswarm network connect` and `disconnect`: single tasks on networks that their services are not on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;
use rswarm_api::v1;

use crate::client::{Client, call};

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Name of the task on that network, beside its own
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address (default: one that is free); its IPv6 twin follows
    #[arg(long, value_name = "IP")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address, of which the IPv4 one follows
    #[arg(long, value_name = "IP", conflicts_with = "ip")]
    ip6: Option<Ipv6Addr>,
    #[arg(long, hide = true, value_parser = refused)]
    driver_opt: Vec<String>,
    #[arg(long, hide = true, value_parser = refused)]
    gw_priority: Option<String>,
    #[arg(long, hide = true, value_parser = refused)]
    link: Vec<String>,
    #[arg(long, hide = true, value_parser = refused)]
    link_local_ip: Vec<String>,
    /// Name or id: driver `bridge`, or an overlay made with --attachable
    network: String,
    /// Name (`web.1`) or id
    task: String,
}

#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// Accepted as Docker has it; a task is always disconnected at once
    #[arg(short, long)]
    force: bool,
    /// Name or id
    network: String,
    /// Name (`web.1`) or id
    task: String,
}

fn refused(_: &str) -> Result<String, String> {
    Err("not supported: a name is given with --alias, the way out stays where it is".to_owned())
}

pub async fn connect(client: &Client, args: ConnectArgs) -> anyhow::Result<()> {
    let ConnectArgs { alias: aliases, ip, ip6, network, task, .. } = args;
    let address = ip.map(IpAddr::from).or(ip6.map(IpAddr::from));
    let address = address.map(|address| address.to_string()).unwrap_or_default();
    call!(client, control.connect_task(v1::ConnectTaskRequest { network, task, aliases, address }))?;
    Ok(())
}

pub async fn disconnect(client: &Client, args: DisconnectArgs) -> anyhow::Result<()> {
    let DisconnectArgs { network, task, .. } = args;
    call!(client, control.disconnect_task(v1::DisconnectTaskRequest { network, task }))?;
    Ok(())
}
