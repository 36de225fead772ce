//! `rswarm image …`: the images of this host.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rswarm_api::v1;
use rswarm_types::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::client::{Client, call, for_each};
use crate::output::{self, Columns, human_span};
use crate::task::familiar_image;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// `table`, `table TEMPLATE`, `json` or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Ids in full
        #[arg(long)]
        no_trunc: bool,
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Load images from a docker or OCI archive
    Load {
        /// Read from this file instead of standard input
        #[arg(short, long)]
        input: Option<PathBuf>,
        /// Do not show what was loaded
        #[arg(short, long)]
        quiet: bool,
    },
    /// Make an image of a root file system's tar
    Import(ImportArgs),
    /// Fetch an image from a registry
    Pull {
        /// `os/architecture`, if not this host's
        #[arg(long, default_value = "")]
        platform: String,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
        image: String,
    },
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm {
        /// Also if a container uses it
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show images in full
    Inspect {
        /// `json` or a Go template
        #[arg(short, long)]
        format: Option<String>,
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Set a part of the configuration: `CMD […]`, `ENTRYPOINT […]`, `ENV K=V`, `WORKDIR /x`, `USER u`
    #[arg(short, long)]
    change: Vec<String>,
    /// Note in the image's history
    #[arg(short, long, default_value = "")]
    message: String,
    /// The tar, or `-` for standard input
    file: PathBuf,
    /// `name[:tag]`
    reference: String,
}

const COLUMNS: Columns = Columns {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    headings: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
    ],
};

/// Bytes sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

pub async fn run(client: &Client, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls { format, no_trunc, quiet } => ls(client, format.as_deref(), no_trunc, quiet).await,
        ImageCommand::Load { input, quiet } => load(client, input, quiet).await,
        ImageCommand::Import(args) => import(client, args).await,
        ImageCommand::Pull { platform, quiet, image } => pull(client, image, platform, quiet).await,
        ImageCommand::Rm { force, images } => {
            for_each(&images, async |image| {
                let request = v1::RemoveImageRequest { image: image.to_owned(), force };
                let removed = call!(client, local.remove_image(request))?;
                for name in removed.untagged {
                    println!("Untagged: {name}");
                }
                for id in removed.deleted {
                    println!("Deleted: {id}");
                }
                Ok(())
            })
            .await
        }
        ImageCommand::Inspect { format, images } => inspect(client, format.as_deref(), images).await,
    }
}

async fn ls(client: &Client, format: Option<&str>, no_trunc: bool, quiet: bool) -> anyhow::Result<()> {
    let images = call!(client, local.list_images(v1::ListImagesRequest {}))?.images;
    let short = |id: &str| {
        if no_trunc { id.to_owned() } else { id.trim_start_matches("sha256:").chars().take(12).collect() }
    };
    if quiet {
        let ids: String = images.iter().map(|image| format!("{}\n", short(&image.id))).collect();
        return Ok(output::print(&ids)?);
    }
    let mut rows: Vec<Value> = Vec::new();
    for image in &images {
        let created: Option<jiff::Timestamp> = image.created.parse().ok();
        let since = created.and_then(|at| u64::try_from(at.as_nanosecond()).ok()).map(Timestamp);
        let untagged = [String::from("<none>:<none>")];
        for tag in if image.tags.is_empty() { &untagged[..] } else { &image.tags[..] } {
            let name = familiar_image(tag);
            let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "latest"));
            rows.push(json!({
                "Repository": repository,
                "Tag": tag,
                "Digest": image.manifest_digest,
                "ID": short(&image.id),
                "CreatedSince": since.filter(|at| at.0 > 0)
                    .map_or("N/A".to_owned(), |at| format!("{} ago", human_span(Timestamp::now().since(at)))),
                "CreatedAt": image.created,
                "Size": decimal_size(image.size_bytes),
            }));
        }
    }
    output::list(COLUMNS, format, &rows)
}

/// `133MB`: image sizes are shown in powers of 1000, three digits. Source: `docker image ls`.
fn decimal_size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let number = format!("{value:.digits$}");
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        number
    };
    format!("{number}{}", UNITS[unit])
}

async fn load(client: &Client, input: Option<PathBuf>, quiet: bool) -> anyhow::Result<()> {
    if input.is_none() && std::io::stdin().is_terminal() {
        anyhow::bail!("expected an archive on standard input or by --input, found a terminal");
    }
    let path = input.unwrap_or_else(|| "-".into());
    let (chunks, read_error) = chunks(&path).await?;
    let requests = tokio_stream::StreamExt::map(chunks, |chunk| v1::LoadImageRequest { chunk });
    let loaded = call!(client, local.load_image(requests));
    read_error.check()?;
    for image in loaded?.images {
        if !quiet {
            match image.tags.first() {
                Some(tag) => println!("Loaded image: {}", familiar_image(tag)),
                None => println!("Loaded image ID: {}", image.id),
            }
        }
    }
    Ok(())
}

async fn import(client: &Client, args: ImportArgs) -> anyhow::Result<()> {
    use v1::import_image_request::{Header, Part};
    let (chunks, read_error) = chunks(&args.file).await?;
    let header =
        Part::Header(Header { reference: args.reference, changes: args.change, message: args.message });
    let parts = tokio_stream::StreamExt::chain(
        tokio_stream::once(header),
        tokio_stream::StreamExt::map(chunks, Part::Chunk),
    );
    let requests = tokio_stream::StreamExt::map(parts, |part| v1::ImportImageRequest { part: Some(part) });
    let imported = call!(client, local.import_image(requests));
    read_error.check()?;
    println!("{}", imported?.image.unwrap_or_default().id);
    Ok(())
}

/// An error met while reading what was being sent: it is the reason for whatever the daemon then said.
struct ReadError(std::sync::Arc<std::sync::Mutex<Option<std::io::Error>>>, PathBuf);

impl ReadError {
    fn check(&self) -> anyhow::Result<()> {
        match self.0.lock().ok().and_then(|mut error| error.take()) {
            Some(error) => {
                Err(anyhow::Error::new(error).context(format!("cannot read `{}`", self.1.display())))
            }
            None => Ok(()),
        }
    }
}

/// The bytes of a file, or of standard input for `-`, as a stream that ends early on an error.
async fn chunks(
    path: &std::path::Path,
) -> anyhow::Result<(tokio_stream::wrappers::ReceiverStream<Vec<u8>>, ReadError)> {
    let mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = if path.as_os_str() == "-" {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(tokio::fs::File::open(path).await.map_err(|error| {
            anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()))
        })?)
    };
    let failed = std::sync::Arc::new(std::sync::Mutex::new(None));
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let note = failed.clone();
    tokio::spawn(async move {
        loop {
            let mut buffer = vec![0; CHUNK_BYTES];
            match reader.read(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => {
                    buffer.truncate(length);
                    if sender.send(buffer).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if let Ok(mut slot) = note.lock() {
                        *slot = Some(error);
                    }
                    return;
                }
            }
        }
    });
    Ok((receiver.into(), ReadError(failed, path.to_owned())))
}

async fn pull(client: &Client, reference: String, platform: String, quiet: bool) -> anyhow::Result<()> {
    use v1::pull_image_response::Step;
    let request = v1::PullImageRequest { reference, platform };
    let mut steps = call!(client, local.pull_image(request))?;
    let show = !quiet && std::io::stderr().is_terminal();
    let mut last_stage = std::collections::BTreeMap::new();
    while let Some(message) = steps.message().await.map_err(|status| client.error(&status))? {
        match message.step {
            Some(Step::Progress(progress)) if show => {
                let stage = last_stage.insert(progress.digest.clone(), progress.stage.clone());
                if stage.as_ref() != Some(&progress.stage) {
                    let digest: String =
                        progress.digest.trim_start_matches("sha256:").chars().take(12).collect();
                    eprintln!("{digest}: {} ({})", progress.stage, decimal_size(progress.total_bytes));
                }
            }
            Some(Step::Image(image)) => {
                if !quiet {
                    println!("Digest: {}", image.manifest_digest);
                }
                println!("{}", image.tags.first().or(image.digests.first()).unwrap_or(&image.id));
            }
            Some(Step::Progress(_)) | None => {}
        }
    }
    Ok(())
}

async fn inspect(client: &Client, format: Option<&str>, names: Vec<String>) -> anyhow::Result<()> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for image in names {
        match call!(client, local.inspect_image(v1::InspectImageRequest { image })) {
            Ok(response) => found.push(shape(&response.image.unwrap_or_default())),
            Err(error) => errors.push(error.to_string()),
        }
    }
    output::inspect(format, &found)?;
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

/// As `docker image inspect` shows it. Source: docker-engine-api.yaml, `ImageInspect`.
fn shape(image: &v1::Image) -> Value {
    let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    json!({
        "Id": image.id,
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Created": image.created,
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size_bytes,
        "Config": config.get("config").cloned().unwrap_or_default(),
        "RootFS": {
            "Type": "layers",
            "Layers": config.pointer("/rootfs/diff_ids").cloned().unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1_500, "1.5kB"), (13_300_000, "13.3MB"), (7_390_000_000, "7.39GB")]
        {
            assert_eq!(decimal_size(bytes), text);
        }
    }
}
