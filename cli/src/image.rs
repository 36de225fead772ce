//! `rswarm image …`: the images of this host.

mod archive;
mod list;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rswarm_api::v1;
use serde_json::{Value, json};

use crate::client::{Client, call, for_each};
use crate::output::{self, Columns, human_span};

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls(list::LsArgs),
    /// Load images from a docker or OCI archive
    Load {
        /// Read from this file instead of standard input
        #[arg(short, long)]
        input: Option<PathBuf>,
        /// Accepted for Docker's sake: there is no progress to leave out
        #[arg(short, long)]
        quiet: bool,
    },
    /// Make an image of a root file system's tar
    Import(ImportArgs),
    /// Fetch an image from a registry
    Pull {
        /// `os/architecture`, if not this host's
        #[arg(long, default_value = "", hide_default_value = true)]
        platform: String,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
        /// `[host[:port]/]name[:tag][@sha256:…]`; the tag is `latest` if nothing is said
        image: String,
    },
    /// Send an image to the registry that its name says
    Push {
        /// No progress
        #[arg(short, long)]
        quiet: bool,
        /// `[host[:port]/]name[:tag]`
        image: String,
    },
    /// Give an image a further name
    Tag {
        /// Name or id
        image: String,
        /// `[host[:port]/]name[:tag]`
        name: String,
    },
    /// Write images to one archive that is an OCI layout and what `docker load` reads
    Save {
        /// Write to this file instead of standard output
        #[arg(short, long)]
        output: Option<PathBuf>,
        /// Names or ids; a name without a tag means all tags of that repository
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show how an image was made
    History(HistoryArgs),
    /// Remove images that nobody uses
    Prune(PruneArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm {
        /// Also if a container uses it; one that is not there is no failure
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
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// The tar, or `-` for standard input
    file: PathBuf,
    /// `name[:tag]`
    reference: String,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Sizes and times for people; `--human=false` for bytes and dates
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, default_missing_value = "true",
          require_equals = true, action = clap::ArgAction::Set)]
    human: bool,
    /// Commands and ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Also images that have a tag
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// `until=24h`, `until=2024-05-01`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub async fn run(client: &Client, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls(args) => list::ls(client, args).await,
        ImageCommand::Load { input, .. } => archive::load(client, input).await,
        ImageCommand::Import(args) => archive::import(client, args).await,
        ImageCommand::Save { output, images } => archive::save(client, output, images).await,
        ImageCommand::Pull { platform, quiet, image } => transfer::pull(client, image, platform, quiet).await,
        ImageCommand::Push { quiet, image } => transfer::push(client, image, quiet).await,
        ImageCommand::Tag { image, name } => {
            call!(client, local.tag_image(v1::TagImageRequest { image, reference: name }))?;
            Ok(())
        }
        ImageCommand::History(args) => history(client, args).await,
        ImageCommand::Prune(args) => prune(client, args).await,
        ImageCommand::Rm { force, images } => {
            for_each(&images, async |image| {
                let request = v1::RemoveImageRequest { image: image.to_owned(), force };
                let removed = match client.local().remove_image(request).await {
                    Ok(removed) => removed.into_inner(),
                    // What is not there need not be removed. Source: `docker image rm --force`.
                    Err(status) if force && status.code() == tonic::Code::NotFound => {
                        eprintln!("{}", client.error(&status));
                        return Ok(());
                    }
                    Err(status) => return Err(client.error(&status).into()),
                };
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

/// The first 12 digits of a digest.
pub fn short_id(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

/// How Go writes a time that was not set.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// When an image was made, if it says so in RFC 3339.
pub fn time_of(created: &str) -> Option<jiff::Timestamp> {
    created.parse().ok().filter(|_| created != NO_TIME)
}

/// `3 days ago`, of an RFC 3339 time; `N/A` of none.
pub fn since(created: &str) -> String {
    let span = |at: jiff::Timestamp| {
        // A time to come, by a clock that is ahead, counts as now.
        let span = jiff::Timestamp::now().duration_since(at);
        format!("{} ago", human_span(span.try_into().unwrap_or_default()))
    };
    time_of(created).map_or("N/A".to_owned(), span)
}

/// `2024-01-02 03:04:05 +0000 UTC`, of an RFC 3339 time; `N/A` of none. Source: Go, `time.Time.String`.
pub fn at(created: &str) -> String {
    time_of(created).map_or("N/A".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string())
}

const HISTORY: Columns = Columns {
    table: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
};

/// Characters of a command that a table shows. Source: `docker image history`.
const COMMAND_SHOWN: usize = 45;

async fn history(client: &Client, args: HistoryArgs) -> anyhow::Result<()> {
    let answer = call!(client, local.image_history(v1::ImageHistoryRequest { image: args.image }))?;
    let id = answer.image.unwrap_or_default().id;
    let id = if args.no_trunc { id } else { short_id(&id) };
    // Only the newest step is an image of its own; the others were parts of its making.
    let ids = std::iter::once(id).chain(std::iter::repeat("<missing>".to_owned()));
    let rows: Vec<Value> = answer
        .entries
        .iter()
        .zip(ids)
        .map(|(entry, id)| {
            let mut command = entry.created_by.replace('\t', " ");
            if !args.no_trunc && command.chars().count() > COMMAND_SHOWN {
                command = command.chars().take(COMMAND_SHOWN - 1).chain(['…']).collect();
            }
            json!({
                "ID": id,
                "CreatedSince": if args.human { since(&entry.created) } else { entry.created.clone() },
                "CreatedAt": entry.created,
                "CreatedBy": command,
                "Size": if args.human { decimal_size(entry.size_bytes) } else { entry.size_bytes.to_string() },
                "Comment": entry.comment,
            })
        })
        .collect();
    if args.quiet {
        let ids: String =
            rows.iter().map(|row| format!("{}\n", row["ID"].as_str().unwrap_or_default())).collect();
        return Ok(output::print(&ids)?);
    }
    output::list(HISTORY, args.format.as_deref(), &rows)
}

async fn prune(client: &Client, args: PruneArgs) -> anyhow::Result<()> {
    let what = if args.all {
        "all images that no container uses"
    } else {
        "all images without a tag that no container uses"
    };
    if !args.force && !output::confirm(&format!("This removes {what}. Go on?"))? {
        return Ok(());
    }
    let filters = crate::client::filters(&args.filter)?;
    let pruned = call!(client, local.prune_images(v1::PruneImagesRequest { all: args.all, filters }))?;
    let mut out = String::new();
    if !pruned.deleted.is_empty() {
        out += "Deleted Images:\n";
        out.extend(pruned.untagged.iter().map(|name| format!("untagged: {name}\n")));
        out.extend(pruned.deleted.iter().map(|id| format!("deleted: {id}\n")));
        out += "\n";
    }
    out += &format!("Total reclaimed space: {}\n", decimal_size(pruned.freed_bytes));
    Ok(output::print(&out)?)
}

/// `133MB`: image sizes are shown in powers of 1000, three digits. Source: `docker image ls`.
pub fn decimal_size(bytes: u64) -> String {
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

async fn inspect(client: &Client, format: Option<&str>, names: Vec<String>) -> anyhow::Result<()> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for image in names {
        match call!(client, local.inspect_image(v1::InspectImageRequest { image })) {
            Ok(response) => found.push(shape(&response.image.unwrap_or_default())),
            Err(error) => errors.push(error.to_string()),
        }
    }
    output::inspect_typed(format, &found, blank)?;
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

/// As `docker image inspect` shows it; `null` is what the image does not say. Source: docker-engine-api.yaml,
/// `ImageInspect`.
fn shape(image: &v1::Image) -> Value {
    let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
    let text = |at: &str| config.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let last = config.get("history").and_then(Value::as_array).and_then(|steps| steps.last());
    let last_comment = || last.and_then(|step| step.get("comment")?.as_str()).unwrap_or_default();
    let comment = Some(text("/comment")).filter(|comment| !comment.is_empty());
    let own = |field: &str| config.pointer(&format!("/config/{field}")).cloned().unwrap_or_default();
    json!({
        "Id": image.id,
        "RepoTags": image.tags,
        "RepoDigests": image.digests,
        "Parent": "",
        "Comment": comment.unwrap_or_else(last_comment),
        "Created": image.created,
        "DockerVersion": text("/docker_version"),
        "Author": text("/author"),
        "Architecture": image.architecture,
        "Variant": text("/variant"),
        "Os": image.os,
        "OsVersion": text("/os.version"),
        "Size": image.size_bytes,
        "Config": {
            "User": text("/config/User"),
            "ExposedPorts": own("ExposedPorts"),
            "Env": own("Env"),
            "Cmd": own("Cmd"),
            "Healthcheck": own("Healthcheck"),
            "ArgsEscaped": own("ArgsEscaped").as_bool().unwrap_or_default(),
            "Volumes": own("Volumes"),
            "WorkingDir": text("/config/WorkingDir"),
            "Entrypoint": own("Entrypoint"),
            "OnBuild": own("OnBuild"),
            "Labels": own("Labels"),
            "StopSignal": text("/config/StopSignal"),
            "Shell": own("Shell"),
        },
        "GraphDriver": { "Name": "overlayfs", "Data": null },
        "RootFS": {
            "Type": "layers",
            "Layers": config.pointer("/rootfs/diff_ids").cloned().unwrap_or_default(),
        },
        // The store does not keep it; Docker's word for that.
        "Metadata": { "LastTagTime": NO_TIME },
    })
}

/// The empty value of each field of [`shape`] that may be `null`, and which ones are objects with fields of their own.
fn blank(field: &str) -> Option<Value> {
    match field {
        "Env" | "Cmd" | "Entrypoint" | "OnBuild" | "Shell" | "Layers" => Some(json!([])),
        "ExposedPorts" | "Volumes" | "Labels" | "Data" => Some(json!({})),
        "Config" | "GraphDriver" | "RootFS" | "Metadata" => Some(Value::Null),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_any_time_say_how_old_they_are() {
        let year = |text: &str| {
            jiff::Timestamp::now().to_string()[..4].parse::<i32>().unwrap() - text.parse::<i32>().unwrap()
        };
        for (created, from) in [("1970-01-01T00:00:00Z", "1970"), ("1919-12-31T23:59:59Z", "1920")] {
            let text = since(created);
            let years: i32 = text.strip_suffix(" years ago").expect("years").parse().expect("a number");
            assert!((0..=1).contains(&(years - year(from)).abs()), "{created}: {text}");
        }
        assert_eq!(since("9999-01-01T00:00:00Z"), "Less than a second ago");
        for none in ["", "soon", NO_TIME] {
            assert_eq!((since(none).as_str(), at(none).as_str()), ("N/A", "N/A"), "{none}");
        }
        assert_eq!(at("2024-01-02T04:04:05.25+01:00"), "2024-01-02 03:04:05 +0000 UTC");
    }

    #[test]
    fn fields_that_an_image_does_not_set_are_empty() {
        let render = |image: &v1::Image, format: &str| {
            let template = crate::template::Template::parse(format).expect("a template");
            template.render_typed(&shape(image), blank)
        };
        let bare = v1::Image { config_json: r#"{"config":{}}"#.into(), ..v1::Image::default() };
        for field in [
            "Author",
            "Comment",
            "Parent",
            "Variant",
            "DockerVersion",
            "Config.User",
            "Config.WorkingDir",
            "Config.StopSignal",
        ] {
            assert_eq!(render(&bare, &format!("{{{{.{field}}}}}")).as_deref(), Ok(""), "{field}");
        }
        assert_eq!(render(&bare, "{{.Config.Entrypoint}}{{.Config.Labels}}").as_deref(), Ok("[]map[]"));
        for json in ["{{json .Config.Entrypoint}}", "{{.Config.Entrypoint | json}}"] {
            assert_eq!(render(&bare, json).as_deref(), Ok("null"), "{json}");
        }
        assert_eq!(render(&bare, "{{.Config.Labels.Env}}").as_deref(), Ok("<no value>"));
        assert!(render(&bare, "{{.Nope}}").is_err() && render(&bare, "{{.Config.Nope}}").is_err());
        let config = json!({
            "author": "joe", "variant": "v6", "history": [{ "comment": "a" }, { "comment": "b" }],
            "config": { "Healthcheck": { "Test": ["CMD", "x"] }, "User": "7" },
        });
        let full = v1::Image { config_json: config.to_string(), ..v1::Image::default() };
        let format = "{{.Author}} {{.Variant}} {{.Comment}} {{.Config.User}} {{.Config.Healthcheck.Test}}";
        assert_eq!(render(&full, format).as_deref(), Ok("joe v6 b 7 [CMD x]"));
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1_500, "1.5kB"), (13_300_000, "13.3MB"), (7_390_000_000, "7.39GB")]
        {
            assert_eq!(decimal_size(bytes), text);
        }
    }
}
