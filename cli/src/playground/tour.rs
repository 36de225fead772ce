//! What the playground shows: a cluster comes into being, a service runs on it, its replicas answer.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rswarm_api::v1;
use rswarm_lab::{Host, Lab};

use super::image::{self, NAME, REVISIONS};
use super::{directory_to_add, expect};
use crate::client::{Client, call};

/// A daemon needs milliseconds to listen; more means it does not.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
const NODES_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
const MANAGERS: usize = 3;
const SERVICE: &str = "web";
const PORT: u16 = 80;
/// On every host.
const PUBLISHED: u16 = 8080;
/// Chance decides who answers: this is for many replicas.
const PAGES_DEADLINE: Duration = Duration::from_secs(20);

/// A step failed on a host of the lab, whose log may say more.
#[derive(Debug, thiserror::Error)]
#[error("`{step}` failed on {host}")]
pub struct HostFailed {
    /// Of the host, from 1.
    pub number: usize,
    host: String,
    step: String,
}

impl HostFailed {
    fn new(host: &Host, step: &str) -> Self {
        Self { number: host.number, host: host.name.clone(), step: step.to_owned() }
    }
}

/// Sets everything up and shows it. The lab's hosts are fresh.
pub async fn show(lab: &mut Lab, replicas: u16) -> anyhow::Result<()> {
    let started_at = Instant::now();
    let hosts = lab.hosts().len();
    println!("Making {hosts} hosts, each with a network and a daemon of its own ...");
    for number in 1..=hosts {
        lab.host_mut(number).start_daemon(&[])?;
    }
    let data_dir = lab.config().data_dir.clone();
    let archives = tokio::task::spawn_blocking(move || image::write(&data_dir));
    for number in 1..=hosts {
        until_answering(lab.host_mut(number)).await?;
    }
    form(lab).await?;
    load(lab, &archives.await.context("cannot build the image")??).await?;
    until_ready(lab).await?;

    let first = lab.host(1);
    let count = replicas.to_string();
    let image = format!("{NAME}:{}", REVISIONS[0]);
    let publish = format!("{PUBLISHED}:{PORT}");
    // One second of watching instead of five: these replicas have no reason to fail.
    let create = ["service", "create", "--name", SERVICE, "--replicas", &count, "--publish", &publish];
    shown(first, &[&create[..], &["--update-monitor", "1s", &image]].concat()).await?;
    shown(first, &["node", "ls"]).await?;
    shown(first, &["service", "ls"]).await?;
    shown(first, &["service", "ps", SERVICE]).await?;
    ask_replicas(lab, replicas).await?;
    println!("\nThe playground is up after {:.1} s.", started_at.elapsed().as_secs_f64());
    explain(lab);
    Ok(())
}

async fn until_answering(host: &mut Host) -> anyhow::Result<()> {
    let deadline = Instant::now() + DAEMON_DEADLINE;
    while !host.answers() {
        if host.daemon_pid().is_none() || Instant::now() > deadline {
            return Err(HostFailed::new(host, "rswarm daemon").into());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The first host makes the cluster, the others enter it.
async fn form(lab: &Lab) -> anyhow::Result<()> {
    let first = lab.host(1);
    let address = first.address.to_string();
    shown(first, &["init", "--advertise-addr", &address]).await?;
    let hosts = lab.hosts().len();
    for host in &lab.hosts()[1..] {
        // Two managers are worse than one.
        let role = if hosts >= MANAGERS && host.number <= MANAGERS { "manager" } else { "worker" };
        let token = output(first, &["join-token", "--quiet", role]).await?;
        shown(host, &["join", "--token", token.trim(), &format!("{address}:2377")]).await?;
    }
    Ok(())
}

/// Gives the image to every host, as there is no registry here.
async fn load(lab: &Lab, archives: &[std::path::PathBuf]) -> anyhow::Result<()> {
    println!("\n(the image {NAME}, which is this very program, is given to every host)");
    let mut loads = Vec::new();
    for archive in archives {
        let path = archive.to_string_lossy();
        say(lab.host(1), &["image", "load", "--input", &path]);
        for host in lab.hosts() {
            loads.push(output_of(
                host,
                vec!["image".into(), "load".into(), "--input".into(), path.to_string()],
            ));
        }
    }
    futures::future::try_join_all(loads).await?;
    Ok(())
}

async fn until_ready(lab: &Lab) -> anyhow::Result<()> {
    let first = lab.host(1);
    let client = Client::new(&first.socket());
    let deadline = Instant::now() + NODES_DEADLINE;
    loop {
        let nodes = call!(client, control.list_nodes(v1::ListNodesRequest::default()))?.nodes;
        let ready =
            |node: &&v1::Node| node.status.as_ref().is_some_and(|s| s.state() == v1::NodeState::Ready);
        let ready = nodes.iter().filter(ready).count();
        if ready == lab.hosts().len() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let step =
                format!("{ready} of {} nodes became ready within {NODES_DEADLINE:?}", lab.hosts().len());
            return Err(HostFailed::new(first, &step).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks the hosts in turn until every replica has answered, and shows the first page of each.
async fn ask_replicas(lab: &Lab, replicas: u16) -> anyhow::Result<()> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut clients = BTreeSet::new();
    let deadline = Instant::now() + PAGES_DEADLINE;
    for host in lab.hosts().iter().cycle() {
        let (netns, address) = (lab.config().wire_netns(), host.address);
        let page = tokio::task::spawn_blocking(move || rswarm_lab::page(&netns, address, PUBLISHED)).await?;
        let page = page.with_context(|| HostFailed::new(host, &format!("fetch a page of `{SERVICE}`")))?;
        let line = |key: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(key));
            expect(line.map(|value| value.trim().to_owned()), || {
                format!("expected a page with `{key}`, found:\n{page}")
            })
        };
        clients.extend(line("peer:")?.rsplit_once(':').map(|(client, _)| client.to_owned()));
        let times = answers.entry(line("task:")?).or_default();
        *times += 1;
        if *times == 1 {
            println!("\n$ curl http://{address}:{PUBLISHED}/");
            print!("{page}");
        }
        if answers.len() == usize::from(replicas) && host.number == lab.hosts().len() {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "only {} of {replicas} replicas answered within {PAGES_DEADLINE:?}",
            answers.len()
        );
    }
    let counts: Vec<_> = answers.iter().map(|(task, times)| format!("{task} {times}")).collect();
    println!("\nAnswers, asked of all hosts in turn: {}.", counts.join(", "));
    println!("The client, as the replicas saw it: {}.", Vec::from_iter(clients).join(", "));
    Ok(())
}

fn explain(lab: &Lab) {
    println!("Go on by hand, as on {}:\n", lab.host(1).name);
    if let Some(directory) = directory_to_add(&lab.config().executable) {
        println!("    export PATH=\"$PATH:{}\"", directory.display());
    }
    println!("    export RSWARM_DATA_ROOT={}", lab.host(1).data_root.display());
    println!("    export RSWARM_RUN_ROOT={}", lab.host(1).run_root.display());
    println!("    rswarm service scale {SERVICE}=6");
    println!("    rswarm service update --image {NAME}:{} {SERVICE}", REVISIONS[1]);
    println!("    rswarm service logs {SERVICE}");
    if lab.hosts().len() > 1 {
        println!("    rswarm node update --availability drain {}", lab.host(2).name);
    }
    let (client, address) = (lab.config().wire_netns(), lab.host(1).address);
    println!("    nsenter --net={} curl http://{address}:{PUBLISHED}/", client.display());
    println!();
}

fn say(host: &Host, args: &[&str]) {
    println!("\n{}$ rswarm {}", host.name, args.join(" "));
}

/// Runs a command on a host, shown as it would look there.
async fn shown(host: &Host, args: &[&str]) -> anyhow::Result<()> {
    say(host, args);
    let mut command = tokio::process::Command::from(host.rswarm(args)?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let status = command.status().await.with_context(|| HostFailed::new(host, &words(args)))?;
    ensure_success(host, args, status.success(), "")
}

/// Runs a command on a host that nobody needs to see; returns what it says.
async fn output(host: &Host, args: &[&str]) -> anyhow::Result<String> {
    output_of(host, args.iter().map(|arg| (*arg).to_owned()).collect()).await
}

async fn output_of(host: &Host, args: Vec<String>) -> anyhow::Result<String> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = tokio::process::Command::from(host.rswarm(&args)?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| HostFailed::new(host, &words(&args)))?;
    ensure_success(host, &args, output.status.success(), String::from_utf8_lossy(&output.stderr).trim())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ensure_success(host: &Host, args: &[&str], success: bool, stderr: &str) -> anyhow::Result<()> {
    if success {
        return Ok(());
    }
    let failed = HostFailed::new(host, &words(args));
    match stderr.strip_prefix("Error: ").unwrap_or(stderr) {
        "" => Err(failed.into()),
        reason => Err(anyhow::anyhow!(reason.to_owned()).context(failed)),
    }
}

fn words(args: &[&str]) -> String {
    format!("rswarm {}", args.join(" "))
}
