//! `rswarm system …`: what concerns this host as a whole.

use clap::Subcommand;
use rswarm_api::v1;
use serde_json::{Value, json};

use crate::client::{Client, call};
use crate::image::{decimal_size, short_id, since};
use crate::output::{self, Columns};
use crate::task::familiar_image;

#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what takes space on this host
    Df {
        /// `table`, `table TEMPLATE`, `json` or a Go template
        #[arg(long)]
        format: Option<String>,
        /// Each image by itself; templates have them as the list `.Images`
        #[arg(short, long)]
        verbose: bool,
    },
}

const SUMMARY: Columns = Columns {
    table: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
    headings: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
};

const IMAGES: Columns = Columns {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.UsedBy}}",
    headings: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("UsedBy", "USED BY"),
    ],
};

pub async fn run(client: &Client, command: SystemCommand) -> anyhow::Result<()> {
    let SystemCommand::Df { format, verbose } = command;
    let usage = call!(client, local.disk_usage(v1::DiskUsageRequest {}))?;
    if verbose {
        let rows = usage.images.iter().map(image_row).collect();
        return output::list(IMAGES, format.as_deref(), &in_full(format.as_deref(), rows));
    }
    let active = usage.images.iter().filter(|image| !image.user.is_empty()).count();
    let rows = [
        json!({
            "Type": "Images",
            "TotalCount": usage.images.len().to_string(),
            "Active": active.to_string(),
            "Size": decimal_size(usage.image_bytes),
            "Reclaimable": share(usage.reclaimable_bytes, usage.image_bytes),
        }),
        json!({
            "Type": "Unfinished Downloads",
            "TotalCount": "",
            "Active": "",
            "Size": decimal_size(usage.partial_download_bytes),
            "Reclaimable": share(usage.reclaimable_download_bytes, usage.partial_download_bytes),
        }),
    ];
    output::list(SUMMARY, format.as_deref(), &rows)
}

fn image_row(usage: &v1::disk_usage_response::ImageUsage) -> Value {
    let image = usage.image.clone().unwrap_or_default();
    let name = image.tags.first().map(|tag| familiar_image(tag));
    let (repository, tag) =
        name.as_deref().and_then(|name| name.rsplit_once(':')).unwrap_or(("<none>", "<none>"));
    json!({
        "Repository": repository,
        "Tag": tag,
        "ID": short_id(&image.id),
        "CreatedSince": since(&image.created),
        "Size": decimal_size(usage.shared_bytes + usage.unique_bytes),
        "SharedSize": decimal_size(usage.shared_bytes),
        "UniqueSize": decimal_size(usage.unique_bytes),
        "UsedBy": usage.user,
    })
}

/// A table shows each image; other formats are of one object with the list. Source: `docker system df`.
fn in_full(format: Option<&str>, images: Vec<Value>) -> Vec<Value> {
    let format = format.unwrap_or_default().trim();
    let is_table = format.is_empty() || format == "table" || format.starts_with("table ");
    if is_table { images } else { vec![json!({ "Images": images })] }
}

/// `1.2GB (40%)`.
fn share(part: u64, whole: u64) -> String {
    match (part.saturating_mul(100)).checked_div(whole) {
        Some(percent) if part > 0 => format!("{} ({percent}%)", decimal_size(part)),
        _ => decimal_size(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_sizes_with_percent() {
        for (part, whole, text) in [(0, 0, "0B"), (0, 10, "0B"), (5, 10, "5B (50%)"), (10, 10, "10B (100%)")]
        {
            assert_eq!(share(part, whole), text);
        }
    }

    #[test]
    fn templates_have_the_images_as_a_list() {
        let images = || vec![json!({ "ID": "a" }), json!({ "ID": "b" })];
        for table in [None, Some("table"), Some("table {{.ID}}")] {
            assert_eq!(in_full(table, images()), images(), "{table:?}");
        }
        for other in ["json", "{{json .Images}}"] {
            assert_eq!(in_full(Some(other), images()), [json!({ "Images": images() })], "{other}");
        }
    }
}
