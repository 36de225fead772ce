//! Making a task's container: its image, its files, its configuration.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rswarm_image::{Digest, Hold, Image, ImageError, PullOptions};
use rswarm_runtime::{CreateRequest, LogOptions, Rootfs, Status};
use rswarm_types::task::{ContainerSpec, RegistryAuth, RegistrySecret};
use rswarm_types::{NetworkDriver, Task};

use super::record::Record;
use super::{
    ContainerExecutor, Error, Node, SpecError, file_error, files, remove_directory, rootfs, spec, users,
};
use crate::executor::Progress;
use crate::registry;

impl ContainerExecutor {
    /// The task's image, pulled if the node lacks it, and what keeps it until the container is known to use it.
    pub(super) async fn image(&self, task: &Task, progress: &Progress) -> Result<(Image, Hold), Error> {
        loop {
            let image = match self.node.config.images.get(&task.spec.container.image) {
                Some(image) => image,
                None => self.pull(&task.spec.container, progress).await?,
            };
            // Someone may have removed it this very moment; then it is pulled once more.
            if let Ok(hold) = self.node.config.images.hold(&image.id) {
                return Ok((image, hold));
            }
        }
    }

    async fn pull(&self, container: &ContainerSpec, progress: &Progress) -> Result<Image, Error> {
        let reference = container.image.as_str();
        let meant = container.registry_auth.as_ref().filter(|auth| registry::is_meant_for(auth, reference));
        if let Some(RegistryAuth { registry, secret: RegistrySecret::Withheld }) = meant {
            return Err(Error::CredentialAwaited { registry: registry.clone() });
        }
        progress.tell(format!("preparing: pulling image `{reference}`"));
        let options = PullOptions {
            progress: Some(pull_progress(reference, progress.clone())),
            auth: meant.and_then(registry::credentials),
            ..self.node.config.pull.clone()
        };
        let pulled = self.node.config.images.pull(reference, &options).await;
        let image = pulled.map_err(|source| {
            let source = Box::new(source);
            match *source {
                ImageError::Unauthorized { .. } if meant.is_none() => Error::PullDenied(source),
                _ => Error::Pull(source),
            }
        })?;
        progress.tell("preparing".to_owned());
        Ok(image)
    }
}

impl Node {
    /// Makes the container of `task`, unless it is there.
    pub(super) fn create(&self, task: &Task, image: &Image) -> Result<(), Error> {
        let id = task.id.to_string();
        if let Some(container) = self.find(task.id)? {
            match container.state()?.status {
                Status::Created | Status::Running | Status::Exited(_) => return Ok(()),
                Status::Lost => container.delete()?,
            }
        }
        let directory = self.directory(task.id);
        // Of an attempt that was cut short.
        remove_directory(&directory)?;
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        for path in [&upper, &work] {
            std::fs::create_dir_all(path).map_err(file_error("make directory", path))?;
        }
        self.images_in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(task.id, (image.id, task.name()));
        let lower = self.config.images.rootfs(image)?;
        let user = resolve_user(task, image, &lower)?;
        check_mount_sources(task)?;
        let mode = spec::network_mode(task)?;
        let hostname = spec::hostname(task, mode, &self.hostname);
        let files = write_files(&directory, task, mode, &hostname, None)?;
        let spec = spec::build(&spec::Inputs {
            task,
            image: &image.config,
            user: &user,
            hostname: &hostname,
            files: &files,
            limits_swap: self.limits_swap,
            node_hostname: &self.node_hostname,
        })?;
        let record = Record {
            name: task.name(),
            image: Some(image.id),
            stop_signal: spec::stop_signal(task, Some(&image.config))?,
            ..Record::default()
        };
        self.write_record(task.id, &record)?;
        let request = CreateRequest {
            cgroup: format!("{}/{id}", self.config.cgroup_parent),
            id,
            spec,
            rootfs: Rootfs::Overlay { lower, upper, work },
            stdin: false,
            log: LogOptions {
                max_size_bytes: task.spec.log.max_size_bytes,
                max_files: task.spec.log.max_files.max(1),
                non_blocking_buffer_bytes: task.spec.log.non_blocking_buffer_bytes,
            },
        };
        self.containers.create(&request)?;
        Ok(())
    }
}

impl Node {
    /// Brings the files of a container in line with the networks of its task. What it wrote there itself is lost, as with
    /// Docker.
    pub(super) fn rewrite_files(&self, task: &Task, record: &Record) -> Result<(), Error> {
        let mode = spec::network_mode(task)?;
        let hostname = spec::hostname(task, mode, &self.hostname);
        write_files(&self.directory(task.id), task, mode, &hostname, record.name_server)?;
        Ok(())
    }
}

fn resolve_user(task: &Task, image: &Image, layers: &[PathBuf]) -> Result<users::User, Error> {
    let read = |path: &'static str| -> Result<String, Error> {
        let content = rootfs::read_file(layers, path, users::FILE_BYTES_MAX)
            .map_err(file_error("read the image's", Path::new(path)))?;
        Ok(String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
    };
    let words = spec::user_words(task, &image.config);
    Ok(users::resolve(words, &task.spec.container.groups, &read("/etc/passwd")?, &read("/etc/group")?)?)
}

/// A bind mount makes no directories on the node. Source: swarm-parity 4.3.
fn check_mount_sources(task: &Task) -> Result<(), SpecError> {
    let binds =
        task.spec.container.mounts.iter().filter(|mount| mount.kind == rswarm_types::task::MountKind::Bind);
    for mount in binds {
        if let Err(error) = std::fs::metadata(&mount.source) {
            let reason = match error.kind() {
                std::io::ErrorKind::NotFound => "it does not exist on this node".to_owned(),
                _ => error.to_string(),
            };
            return Err(SpecError::MountSource {
                source_path: mount.source.clone(),
                target: mount.target.clone(),
                reason,
            });
        }
    }
    Ok(())
}

/// Writes the files the node gives to the container; returns where each is and where it belongs.
fn write_files(
    directory: &Path,
    task: &Task,
    mode: spec::NetworkMode,
    hostname: &str,
    name_server: Option<IpAddr>,
) -> Result<Vec<(String, &'static str)>, Error> {
    // A node may lack either file; the container then gets what can be said without it.
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let of_node = mode == spec::NetworkMode::Host;
    let container = &task.spec.container;
    let hosts = match of_node {
        true => files::hosts_of_node(&read("/etc/hosts"), &container.hosts),
        false => files::hosts(hostname, &task.networks, &container.hosts),
    };
    let mut resolv_conf = read("/etc/resolv.conf");
    if !of_node && files::has_only_loopback_servers(&resolv_conf) {
        // Where systemd-resolved keeps the servers behind its stub.
        if let Ok(real) = std::fs::read_to_string("/run/systemd/resolve/resolv.conf") {
            resolv_conf = real;
        }
    }
    // On an overlay every gateway is this node, where the resolver listens.
    let overlay = task.networks.iter().find(|network| network.driver == NetworkDriver::Overlay);
    let gateway = overlay.and_then(|network| network.address?.asked_gateway());
    let resolv_conf = match gateway.or(name_server) {
        Some(server) => rswarm_resolver::resolv_conf(&resolv_conf, &[server], &container.dns),
        None => files::resolv_conf(&resolv_conf, &container.dns, of_node),
    };
    let mut written = Vec::new();
    for (name, target, content) in [
        ("hosts", "/etc/hosts", hosts),
        ("hostname", "/etc/hostname", format!("{hostname}\n")),
        ("resolv.conf", "/etc/resolv.conf", resolv_conf),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, content).map_err(file_error("write", &path))?;
        written.push((path.to_string_lossy().into_owned(), target));
    }
    Ok(written)
}

/// Says how far a pull is, as a task's message. Layers report on their own; what is shown is their sum.
fn pull_progress(reference: &str, progress: Progress) -> rswarm_image::ProgressSink {
    struct Pull {
        total: u64,
        done: HashMap<Digest, u64>,
        shown: u64,
    }
    let pull = Mutex::new(Pull { total: 0, done: HashMap::new(), shown: 0 });
    let reference = reference.to_owned();
    Arc::new(move |event| {
        let mut pull = pull.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            rswarm_image::Progress::Manifest { bytes, .. } => pull.total = bytes,
            rswarm_image::Progress::Downloading { layer, done, .. } => drop(pull.done.insert(layer, done)),
            _ => return,
        }
        let done: u64 = pull.done.values().sum();
        let percent = (done.saturating_mul(100)).checked_div(pull.total).unwrap_or_default().min(100);
        // Ten steps: each one is a write on every manager.
        if percent >= pull.shown + 10 {
            pull.shown = percent - percent % 10;
            progress.tell(format!("preparing: pulling image `{reference}`: {} %", pull.shown));
        }
    })
}
