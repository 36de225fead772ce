//! `rswarm image ls`: which images are shown, and their rows.

use std::collections::BTreeSet;

use anyhow::bail;
use clap::Args;
use rswarm_api::v1;
use serde_json::{Value, json};

use super::{at, decimal_size, short_id, since, time_of};
use crate::client::{Client, call, filters};
use crate::output::{self, Columns};
use crate::task::familiar_image;

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Accepted for Docker's sake: no image is hidden here
    #[arg(short, long)]
    all: bool,
    /// Also the digests that their registries have them under
    #[arg(long)]
    digests: bool,
    /// `dangling=true|false`, `label=KEY[=VALUE]`, `before=IMAGE`, `since=IMAGE`, `reference=PATTERN`
    #[arg(short, long, value_name = "KEY=VALUE")]
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
    /// Only this repository, or this tag of it: `name[:tag]`, also as a pattern
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

const HEADINGS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Containers", "CONTAINERS"),
];
const COLUMNS: Columns =
    Columns { table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}", headings: HEADINGS };
const WITH_DIGESTS: Columns = Columns {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    headings: HEADINGS,
};

pub async fn ls(client: &Client, args: LsArgs) -> anyhow::Result<()> {
    let mut filter = Filter::default();
    filter.references.extend(args.repository.as_deref().map(familiar_image));
    for v1::Filter { key, values } in filters(&args.filter)? {
        for value in values {
            // Other images are known to the daemon alone.
            let other = match key.as_str() {
                "before" | "since" => {
                    let request = v1::InspectImageRequest { image: value.clone() };
                    let image = call!(client, local.inspect_image(request))?.image.unwrap_or_default();
                    time_of(&image.created)
                }
                _ => None,
            };
            filter.add(&key, &value, other)?;
        }
    }
    let mut images = call!(client, local.list_images(v1::ListImagesRequest {}))?.images;
    images.retain_mut(|image| filter.admits(image));
    let short = |id: &str| if args.no_trunc { id.to_owned() } else { short_id(id) };
    if args.quiet {
        // Several manifests of an image have one id.
        let mut seen = BTreeSet::new();
        let new = images.iter().filter(|image| seen.insert(&image.id));
        let ids: String = new.map(|image| format!("{}\n", short(&image.id))).collect();
        return Ok(output::print(&ids)?);
    }
    let mut rows: Vec<Value> = Vec::new();
    for image in &images {
        for (repository, tag) in names(image) {
            // Further digests are further rows only for who asked for them.
            let shown = if args.digests { usize::MAX } else { 1 };
            for digest in digests(image, &repository).into_iter().take(shown) {
                rows.push(json!({
                    "Repository": repository,
                    "Tag": tag,
                    "Digest": digest,
                    "ID": short(&image.id),
                    "CreatedSince": since(&image.created),
                    "CreatedAt": at(&image.created),
                    "Size": decimal_size(image.size_bytes),
                    "VirtualSize": decimal_size(image.size_bytes),
                    // `system df -v` knows.
                    "SharedSize": "N/A",
                    "UniqueSize": "N/A",
                    "Containers": "N/A",
                }));
            }
        }
    }
    output::list(if args.digests { WITH_DIGESTS } else { COLUMNS }, args.format.as_deref(), &rows)
}

/// Repository and tag of each row: one for each tag, one for each repository that the image is pinned in without having
/// a tag there, or one of none.
fn names(image: &v1::Image) -> BTreeSet<(String, String)> {
    let none = || "<none>".to_owned();
    let split = |name: &String| {
        let name = familiar_image(name);
        let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, "latest"));
        (repository.to_owned(), tag.to_owned())
    };
    let mut names: BTreeSet<_> = image.tags.iter().map(split).collect();
    for name in &image.digests {
        let repository = familiar_image(name).split('@').next().unwrap_or_default().to_owned();
        if !names.iter().any(|(known, _)| *known == repository) {
            names.insert((repository, none()));
        }
    }
    if names.is_empty() {
        names.insert((none(), none()));
    }
    names
}

/// The digests that the repository's registry has an image under; the manifest's own of one that came from elsewhere.
fn digests<'a>(image: &'a v1::Image, repository: &str) -> Vec<&'a str> {
    let pinned = image.digests.iter().filter_map(|name| name.rsplit_once('@'));
    let of_repository = pinned.filter(|(name, _)| familiar_image(name) == repository);
    let found: Vec<&str> = of_repository.map(|(_, digest)| digest).collect();
    if found.is_empty() { vec![&image.manifest_digest] } else { found }
}

/// What `--filter` and the argument ask for. Source: Docker's `image ls`, "Filtering".
#[derive(Debug, Default)]
struct Filter {
    dangling: Option<bool>,
    /// All of these; `None` means any value.
    labels: Vec<(String, Option<String>)>,
    /// Made before all of these times; `None` is the time of an image that says none, which nothing was made before.
    before: Vec<Option<jiff::Timestamp>>,
    since: Vec<Option<jiff::Timestamp>>,
    /// Any of these patterns.
    references: Vec<String>,
}

impl Filter {
    /// `other` is the creation time of the image that `before` and `since` name.
    fn add(&mut self, key: &str, value: &str, other: Option<jiff::Timestamp>) -> anyhow::Result<()> {
        match (key, value) {
            ("dangling", "true" | "1") => self.dangling = Some(true),
            ("dangling", "false" | "0") => self.dangling = Some(false),
            ("dangling", _) => bail!("invalid filter `dangling={value}`: expected `true` or `false`"),
            ("label", _) => self.labels.push(match value.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (value.to_owned(), None),
            }),
            ("before", _) => self.before.push(other),
            ("since", _) => self.since.push(other),
            ("reference", _) => self.references.push(familiar_image(value)),
            _ => bail!(
                "invalid filter `{key}={value}`: expected `dangling`, `label`, `before`, `since` or `reference`"
            ),
        }
        Ok(())
    }

    /// Whether the image is shown; leaves it the names that are.
    fn admits(&self, image: &mut v1::Image) -> bool {
        if self.dangling.is_some_and(|dangling| dangling != image.tags.is_empty()) {
            return false;
        }
        let made = time_of(&image.created);
        let before = |other: &Option<jiff::Timestamp>| matches!((made, other), (Some(a), Some(b)) if a < *b);
        let since = |other: &Option<jiff::Timestamp>| matches!((made, other), (Some(a), Some(b)) if a > *b);
        if !self.before.iter().all(before) || !self.since.iter().all(since) {
            return false;
        }
        let config: Value = serde_json::from_str(&image.config_json).unwrap_or_default();
        let labels = config.pointer("/config/Labels");
        let has = |(key, wanted): &(String, Option<String>)| {
            let found = labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
            found.is_some_and(|found| wanted.as_ref().is_none_or(|wanted| wanted == found))
        };
        if !self.labels.iter().all(has) {
            return false;
        }
        if self.references.is_empty() {
            return true;
        }
        let meant = |name: &String| self.references.iter().any(|pattern| means(pattern, name));
        image.tags.retain(meant);
        // Those of a repository with a tag are the digests of that row.
        let tagged: BTreeSet<&str> = image.tags.iter().map(|tag| repository_of(tag)).collect();
        image.digests.retain(|digest| meant(digest) || tagged.contains(repository_of(digest)));
        !image.tags.is_empty() || !image.digests.is_empty()
    }
}

/// Whether a pattern is that of a name, with its tag or digest or without.
fn means(pattern: &str, name: &str) -> bool {
    let name = familiar_image(name);
    let matches = |text: &str| matches(pattern.as_bytes(), text.as_bytes());
    matches(&name) || matches(repository_of(&name))
}

/// A name without its tag or digest.
fn repository_of(name: &str) -> &str {
    let (repository, _) = name.split_once('@').or_else(|| name.rsplit_once(':')).unwrap_or((name, ""));
    repository
}

/// `*` and `?` stand for anything but `/`, `[a-c]` and `[^a-c]` for one character of a set, `\\` takes the next one as it
/// is. Source: Go, `path.Match`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => {
            let segment = text.iter().take_while(|byte| **byte != b'/').count();
            (0..=segment).any(|taken| matches(rest, &text[taken..]))
        }
        ([b'?', rest @ ..], [byte, after @ ..]) => *byte != b'/' && matches(rest, after),
        ([b'[', set @ ..], [byte, after @ ..]) => {
            let Some(end) = set.iter().skip(1).position(|byte| *byte == b']').map(|at| at + 1) else {
                return false;
            };
            let (set, rest) = (&set[..end], &set[end + 1..]);
            let (set, wanted) = set.strip_prefix(b"^").map_or((set, true), |set| (set, false));
            in_set(set, *byte) == wanted && matches(rest, after)
        }
        ([b'\\', literal, rest @ ..] | [literal, rest @ ..], [byte, after @ ..]) => {
            literal == byte && matches(rest, after)
        }
        (_, []) => false,
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [] => false,
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str], created: &str, labels: &Value) -> v1::Image {
        v1::Image {
            tags: tags.iter().map(ToString::to_string).collect(),
            digests: digests.iter().map(ToString::to_string).collect(),
            created: created.to_owned(),
            config_json: json!({ "config": { "Labels": labels } }).to_string(),
            ..v1::Image::default()
        }
    }

    /// The first names of the images that the filters leave.
    #[track_caller]
    fn check(filters: &[(&str, &str)], expected: &[&str]) {
        let time = |name: &str| format!("20{name}-01-01T00:00:00Z");
        let mut filter = Filter::default();
        for (key, value) in filters {
            let other = time(value).parse().ok();
            filter.add(key, value, other).expect("a known filter");
        }
        let images = [
            image(&["nginx:1", "host:5000/web/nginx:2"], &[], &time("01"), &json!({ "a": "b", "c": "" })),
            image(&["team/app:dev"], &["team/app@sha256:00"], &time("02"), &json!({ "a": "x" })),
            image(&[], &["redis@sha256:11"], &time("03"), &Value::Null),
            image(&[], &[], "", &Value::Null),
        ];
        let mut found = Vec::new();
        for mut image in images {
            if filter.admits(&mut image) {
                found
                    .extend(names(&image).into_iter().map(|(repository, tag)| format!("{repository}:{tag}")));
            }
        }
        assert_eq!(found, expected, "{filters:?}");
    }

    #[test]
    fn filters_are_those_of_docker() {
        let tagged = ["host:5000/web/nginx:2", "nginx:1", "team/app:dev"];
        check(&[("dangling", "true")], &["redis:<none>", "<none>:<none>"]);
        check(&[("dangling", "false")], &tagged);
        check(&[("label", "a")], &tagged);
        check(&[("label", "a"), ("label", "c=")], &tagged[..2]);
        check(&[("label", "a=x")], &tagged[2..]);
        check(&[("before", "02")], &tagged[..2]);
        check(&[("since", "01"), ("before", "03")], &tagged[2..]);
        check(&[("since", "02")], &["redis:<none>"]);
        check(&[("reference", "nginx")], &["nginx:1"]);
        check(&[("reference", "docker.io/library/nginx:1")], &["nginx:1"]);
        check(&[("reference", "nginx:2")], &[]);
        check(&[("reference", "*")], &["nginx:1", "redis:<none>"]);
        check(&[("reference", "host:5000/web/nginx")], &["host:5000/web/nginx:2"]);
        check(&[("reference", "*/*:dev"), ("reference", "redis")], &["team/app:dev", "redis:<none>"]);
        check(&[("reference", "nginx"), ("label", "a=x")], &[]);
        for (key, value) in [("dangling", "maybe"), ("nope", "x")] {
            let error = Filter::default().add(key, value, None).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}={value}`: expected ")), "{error}");
        }
    }

    #[test]
    fn a_repository_without_a_tag_has_a_row_too() {
        let digests = ["app@sha256:00", "app@sha256:11", "mirror/app@sha256:00"];
        let image = image(&["app:1"], &digests, "", &Value::Null);
        let rows: Vec<String> =
            names(&image).into_iter().map(|(repository, tag)| format!("{repository}:{tag}")).collect();
        assert_eq!(rows, ["app:1", "mirror/app:<none>"]);
    }

    #[test]
    fn digests_are_those_of_the_registry_of_the_row() {
        let mut known = image(&["app:1", "copy:1"], &["app@sha256:aa", "app@sha256:bb"], "", &Value::Null);
        known.manifest_digest = "sha256:cc".to_owned();
        let mut filter = Filter::default();
        filter.add("reference", "app:1", None).expect("a known filter");
        assert!(filter.admits(&mut known));
        assert_eq!(digests(&known, "app"), ["sha256:aa", "sha256:bb"]);
        assert_eq!(digests(&known, "copy"), ["sha256:cc"]);
        let mut twice = image(&["app:1", "copy:1"], &["app@sha256:aa", "copy@sha256:aa"], "", &Value::Null);
        assert!(filter.admits(&mut twice));
        assert_eq!(names(&twice), BTreeSet::from([("app".to_owned(), "1".to_owned())]));
    }

    #[test]
    fn patterns_match_as_those_of_go() {
        for (pattern, text, expected) in [
            ("ng*", "nginx", true),
            ("ng*", "ng/x", false),
            ("*x", "nginx", true),
            ("n?inx", "nginx", true),
            ("n[a-h]inx", "nginx", true),
            ("n[^a-h]inx", "nginx", false),
            ("n[", "ng", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("", "", true),
            ("", "a", false),
            ("a*", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
