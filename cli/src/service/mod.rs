//! `rswarm service …`. Source: swarm-parity 1.3 to 1.5.

mod flags;
mod logs;
mod pretty;
mod show;
mod value;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use rswarm_api::v1;
use rswarm_types::service::{PublishMode, ServiceMode};
use rswarm_types::{NetworkId, Node, Service, ServiceSpec};

use crate::client::{Client, call, for_each};
use crate::network;
use crate::progress::{self, Waiting};
use crate::registry_auth::{self, AuthError};
use flags::{CreateFlags, FlagError, Surroundings, UpdateFlags};

pub use value::{boolean, label};

/// A registry that answers does so sooner.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Create a service
    #[command(override_usage = "rswarm service create [OPTIONS] IMAGE [COMMAND] [ARG]...")]
    Create(Box<CreateFlags>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(show::LsArgs),
    /// List the tasks of services
    Ps(show::PsArgs),
    /// Show services in full
    Inspect(show::InspectArgs),
    /// Set the number of tasks of services
    Scale(ScaleArgs),
    /// Change a service
    Update(Box<UpdateFlags>),
    /// Go back to the spec before the last update
    Rollback(RollbackArgs),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show what tasks wrote
    Logs(logs::LogsArgs),
}

#[derive(Debug, Args)]
pub struct ScaleArgs {
    #[command(flatten)]
    waiting: Waiting,
    /// Service and number of tasks
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    scales: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    waiting: Waiting,
    /// Name or id
    service: String,
}

pub async fn run(client: &Client, command: ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::Create(flags) => create(client, &flags).await,
        ServiceCommand::Ls(args) => show::ls(client, args).await,
        ServiceCommand::Ps(args) => show::ps(client, args).await,
        ServiceCommand::Inspect(args) => show::inspect(client, args).await,
        ServiceCommand::Scale(args) => scale(client, &args).await,
        ServiceCommand::Update(flags) => update(client, &flags).await,
        ServiceCommand::Rollback(RollbackArgs { waiting, service }) => {
            rollback(client, &service, waiting).await
        }
        ServiceCommand::Rm { services } => {
            for_each(&services, async |service| {
                call!(
                    client,
                    control.remove_service(v1::RemoveServiceRequest { service: service.to_owned() })
                )?;
                println!("{service}");
                Ok(())
            })
            .await
        }
        ServiceCommand::Logs(args) => logs::run(client, args).await,
    }
}

async fn get(client: &Client, name: &str) -> anyhow::Result<Service> {
    let response = call!(client, control.get_service(v1::GetServiceRequest { service: name.to_owned() }))?;
    Ok(Service::try_from(response.service.unwrap_or_default())?)
}

/// Every network: id and name.
async fn networks(client: &Client) -> anyhow::Result<Vec<(NetworkId, String)>> {
    Ok(network::all(client).await?.into_iter().map(|network| (network.id, network.spec.name)).collect())
}

/// Hands `work` what flags may refer to. The networks are only asked for if `names_networks`.
async fn surrounded<T>(
    client: &Client,
    names_networks: bool,
    env_files: &[PathBuf],
    work: impl FnOnce(&Surroundings<'_>) -> Result<T, FlagError>,
) -> anyhow::Result<T> {
    let networks = if names_networks { networks(client).await? } else { Vec::new() };
    let mut files = Vec::new();
    for path in env_files {
        let text = std::fs::read_to_string(path).map_err(|error| {
            anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()))
        })?;
        files.push((path.clone(), text));
    }
    let env = |key: &str| std::env::var(key).ok();
    Ok(work(&Surroundings { networks: &networks, env: &env, env_files: &files })?)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("{warning}");
    }
}

async fn converge(client: &Client, service: &str, waiting: Waiting) -> anyhow::Result<()> {
    if waiting.detach {
        return Ok(());
    }
    progress::wait(client, service, waiting.quiet).await?;
    warn(&ports_in_use(client, service).await?);
    Ok(())
}

/// Published ports of a service that do not answer on some node, as another process has them there.
async fn ports_in_use(client: &Client, service: &str) -> anyhow::Result<Vec<String>> {
    let published = get(client, service).await?.endpoint.ports;
    let mesh = published.iter().filter(|port| port.mode == PublishMode::Ingress);
    let mesh: Vec<_> = mesh.filter_map(|port| Some((port.protocol, port.published?))).collect();
    if mesh.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = call!(client, control.list_nodes(v1::ListNodesRequest { filters: Vec::new() }))?.nodes;
    let mut warnings = Vec::new();
    for node in nodes {
        let node = Node::try_from(node)?;
        let Some(description) = &node.description else { continue };
        for (protocol, port) in mesh.iter().filter(|port| description.network.ports_in_use.contains(port)) {
            warnings.push(format!(
                "Warning: port {port}/{protocol} of node `{}` is in use by another process, which gets what comes there",
                node.display_name()
            ));
        }
    }
    Ok(warnings)
}

async fn create(client: &Client, flags: &CreateFlags) -> anyhow::Result<()> {
    let spec = surrounded(client, flags.names_networks(), &flags.env_file, |s| flags.spec(s)).await?;
    let request = v1::CreateServiceRequest {
        spec: Some((&spec).into()),
        no_resolve_image: flags.no_resolve_image(),
        registry_auth: credential(flags.with_registry_auth(), &spec)?,
    };
    let looks_up = !request.no_resolve_image;
    let created = Box::pin(async { call!(client, control.create_service(request)) });
    let created = patiently(looks_up.then_some(&spec), created).await?;
    warn(&created.warnings);
    let id = created.service.unwrap_or_default().id;
    println!("{id}");
    converge(client, &id, flags.waiting).await
}

/// The user's credential for the registry of the service's image, if it is asked for; empty if there is none.
fn credential(wanted: bool, spec: &ServiceSpec) -> Result<Option<v1::RegistryAuth>, AuthError> {
    wanted.then(|| registry_auth::of_service(&spec.task.container.image)).transpose()
}

/// Sends a changed spec with the version it was computed from.
async fn put(
    client: &Client,
    service: &Service,
    spec: &ServiceSpec,
    resolve_image: bool,
    registry_auth: Option<v1::RegistryAuth>,
) -> anyhow::Result<()> {
    let request = v1::UpdateServiceRequest {
        id: service.id.to_string(),
        version: service.meta.version.0,
        spec: Some(spec.into()),
        resolve_image,
        rollback: false,
        registry_auth,
    };
    let updated = Box::pin(async { call!(client, control.update_service(request)) });
    warn(&patiently(resolve_image.then_some(spec), updated).await?.warnings);
    Ok(())
}

/// Waits for an answer. If it takes long, and the image of `spec` is looked up for it, says so.
async fn patiently<T>(spec: Option<&ServiceSpec>, mut answer: impl Future<Output = T> + Unpin) -> T {
    if let Some(spec) = spec {
        match tokio::time::timeout(SILENCE, &mut answer).await {
            Ok(answer) => return answer,
            Err(_) => eprintln!(
                "Still looking up image `{}` at its registry; --no-resolve-image goes without",
                spec.task.container.image
            ),
        }
    }
    answer.await
}

async fn update(client: &Client, flags: &UpdateFlags) -> anyhow::Result<()> {
    if flags.rollback()? {
        return rollback(client, &flags.service, flags.waiting).await;
    }
    let service = get(client, &flags.service).await?;
    let mut spec = service.spec.clone();
    surrounded(client, flags.names_networks(), &[], |s| flags.apply(&mut spec, s)).await?;
    let registry_auth = credential(flags.with_registry_auth(), &spec)?;
    put(client, &service, &spec, flags.resolve_image(), registry_auth).await?;
    println!("{}", flags.service);
    converge(client, &service.id.to_string(), flags.waiting).await
}

async fn rollback(client: &Client, name: &str, waiting: Waiting) -> anyhow::Result<()> {
    let service = get(client, name).await?;
    let request = v1::UpdateServiceRequest {
        id: service.id.to_string(),
        version: service.meta.version.0,
        spec: None,
        resolve_image: false,
        rollback: true,
        registry_auth: None,
    };
    warn(&call!(client, control.update_service(request))?.warnings);
    println!("{name}");
    converge(client, &service.id.to_string(), waiting).await
}

async fn scale(client: &Client, args: &ScaleArgs) -> anyhow::Result<()> {
    let mut scales = Vec::new();
    for scale in &args.scales {
        let Some((name, replicas)) = scale.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            anyhow::bail!("invalid scale `{scale}`: expected SERVICE=REPLICAS, like web=3");
        };
        let replicas = value::replicas(replicas)
            .map_err(|error| anyhow::anyhow!("invalid replicas of service `{name}`: {error}"))?;
        scales.push((name, replicas));
    }
    // All are asked for before the first is waited for.
    let (mut accepted, mut errors) = (Vec::new(), Vec::new());
    for (name, replicas) in scales {
        match scale_one(client, name, replicas).await {
            Ok(id) => {
                println!("{name} scaled to {replicas}");
                accepted.push(id);
            }
            Err(error) => errors.push(format!("{name}: {error:#}")),
        }
    }
    for id in accepted {
        if let Err(error) = converge(client, &id, args.waiting).await {
            errors.push(format!("{error:#}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

async fn scale_one(client: &Client, name: &str, wanted: u64) -> anyhow::Result<String> {
    let service = get(client, name).await?;
    let mut spec = service.spec.clone();
    match &mut spec.mode {
        ServiceMode::Replicated { replicas } => *replicas = wanted,
        ServiceMode::Global => anyhow::bail!("scale can only be used with replicated mode"),
    }
    put(client, &service, &spec, false, None).await?;
    Ok(service.id.to_string())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ServiceCommand,
    }

    #[test]
    fn the_command_line_is_sound_and_help_hides_what_is_refused() {
        Line::command().debug_assert();
        let mut create = Line::command().find_subcommand("create").unwrap().clone();
        let help = create.render_help().to_string();
        assert!(
            help.contains("--replicas <N>") && !help.contains("--secret") && !help.contains("--health"),
            "{help}"
        );
    }

    #[test]
    fn short_switches_may_stand_together() {
        let line = Line::try_parse_from(["rswarm", "create", "-dqp", "80", "web"]).unwrap();
        let ServiceCommand::Create(flags) = line.command else { panic!("{line:?}") };
        assert_eq!(flags.waiting, Waiting { detach: true, quiet: true });
    }
}
