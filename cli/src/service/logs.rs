//! `service logs`: what tasks wrote, from all nodes. Source: swarm-parity 1.4, 3.12.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use rswarm_api::v1::{self, log_record::Stream};
use rswarm_types::Timestamp;
use rswarm_types::quantity::parse_duration;

use super::value::{ValueError, boolean};
use crate::client::{Client, call};
use crate::{node, shape};

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct LogsArgs {
    /// Accepted: tasks log no more than their lines so far
    #[arg(long, hide = true)]
    details: bool,
    /// Go on with what is written from now on
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, action = clap::ArgAction::Set,
        value_parser = boolean, value_name = "BOOL")]
    follow: bool,
    /// Ids of nodes instead of names
    #[arg(long)]
    no_resolve: bool,
    /// Without the tasks' ids
    #[arg(long)]
    no_task_ids: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// The lines alone
    #[arg(long)]
    raw: bool,
    /// Only what was written since: 2026-01-02T15:04:05Z, seconds since 1970, or a span like 10m
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    since: Option<Since>,
    /// Only the last lines of each task
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = tail,
        allow_hyphen_values = true)]
    tail: Tail,
    /// When each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Names or ids of services or tasks
    #[arg(required = true, value_name = "SERVICE|TASK")]
    targets: Vec<String>,
}

/// A beginning in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    At(Timestamp),
    /// Before now.
    Ago(Duration),
}

impl Since {
    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(span) => now.before(span),
        }
    }
}

fn since(text: &str) -> Result<Since, ValueError> {
    if let Ok(span) = parse_duration(text)
        && text != "0"
    {
        return Ok(Since::Ago(span));
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Since::At(Timestamp(u64::try_from(at.as_nanosecond()).unwrap_or_default())));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: Option<u64> = whole.parse().ok();
    let nanos: Option<u64> = format!("{fraction:0<9}").get(..9).and_then(|digits| digits.parse().ok());
    let at = seconds.zip(nanos).and_then(|(s, n)| s.checked_mul(1_000_000_000)?.checked_add(n));
    let expected = "a time like `2026-01-02T15:04:05Z`, seconds since 1970, or a span like `10m`";
    at.map(|at| Since::At(Timestamp(at))).ok_or_else(|| ValueError::new(expected, text))
}

/// How many lines from the end; `None` is all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, ValueError> {
    match text {
        "all" | "-1" => Ok(Tail(None)),
        _ => text
            .parse()
            .map(|n| Tail(Some(n)))
            .map_err(|_| ValueError::new("`all` or a number of lines", text)),
    }
}

pub async fn run(client: &Client, args: LogsArgs) -> anyhow::Result<()> {
    let request = v1::ServiceLogsRequest {
        targets: args.targets.clone(),
        follow: args.follow,
        since_at: args.since.map_or(0, |since| since.at(Timestamp::now()).0),
        tail: args.tail.0,
    };
    let mut stream = call!(client, control.service_logs(request))?;
    let nodes = if args.raw || args.no_resolve { BTreeMap::new() } else { node::names(client).await? };
    let mut writer = Writer { args: &args, nodes, width: 0 };
    let mut warnings = Vec::new();
    let mut records = Vec::new();
    while let Some(batch) = stream.message().await.map_err(|status| client.error(&status))? {
        warnings.extend(batch.warnings);
        if args.follow {
            // What comes next is not known, so lines are shown as they arrive.
            if !writer.write(&batch.records)? {
                return Ok(());
            }
        } else {
            records.extend(batch.records);
        }
    }
    // Sorting is stable: lines of one task that carry the same time stay in the order in which they were written.
    records.sort_by_key(|record| record.at);
    writer.write(&records)?;
    if warnings.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(warnings.join("\n"))) }
}

struct Writer<'a> {
    args: &'a LogsArgs,
    /// Names of nodes by id.
    nodes: BTreeMap<String, String>,
    /// The longest prefix seen; every line is padded to it.
    width: usize,
}

impl Writer<'_> {
    /// Writes each line to the stream it came from; false if nobody reads any more.
    fn write(&mut self, records: &[v1::LogRecord]) -> std::io::Result<bool> {
        let longest = records.iter().map(|record| self.prefix(record).chars().count()).max();
        self.width = self.width.max(longest.unwrap_or(0));
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        let write = || -> std::io::Result<()> {
            for record in records {
                let line = self.line(record);
                if record.stream() == Stream::Stderr { err.write_all(&line)? } else { out.write_all(&line)? }
            }
            out.flush()
        };
        match { write }() {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            result => result.map(|()| true),
        }
    }

    fn line(&self, record: &v1::LogRecord) -> Vec<u8> {
        let mut line = Vec::with_capacity(record.line.len() + self.width + 40);
        if self.args.timestamps {
            line.extend_from_slice(shape::time(Timestamp(record.at)).as_bytes());
            line.push(b' ');
        }
        if !self.args.raw {
            line.extend_from_slice(format!("{:<1$}    | ", self.prefix(record), self.width).as_bytes());
        }
        line.extend_from_slice(&record.line);
        line.push(b'\n');
        line
    }

    /// `web.1.taskid@node`
    fn prefix(&self, record: &v1::LogRecord) -> String {
        let mut text = format!("{}.{}", record.service_name, record.slot);
        if !self.args.no_task_ids {
            let length = if self.args.no_trunc { record.task_id.len() } else { 12 };
            text.push('.');
            text.extend(record.task_id.chars().take(length));
        }
        text.push('@');
        text.push_str(self.nodes.get(&record.node_id).unwrap_or(&record.node_id));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings() {
        let at = |nanos| Some(Since::At(Timestamp(nanos)));
        for (text, expected) in [
            ("10m", Some(Since::Ago(Duration::from_secs(600)))),
            ("1970-01-01T00:00:01Z", at(1_000_000_000)),
            ("1970-01-01T01:00:01+01:00", at(1_000_000_000)),
            ("1", at(1_000_000_000)),
            ("0", at(0)),
            ("1.5", at(1_500_000_000)),
            ("1.123456789", at(1_123_456_789)),
            ("2026-01-02", None),
            ("-5m", None),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(since(text).ok(), expected, "{text}");
        }
        assert_eq!(Since::Ago(Duration::from_nanos(5)).at(Timestamp(20)), Timestamp(15));
    }

    #[test]
    fn tails() {
        for (text, expected) in [
            ("all", Some(Tail(None))),
            ("-1", Some(Tail(None))),
            ("0", Some(Tail(Some(0)))),
            ("10", Some(Tail(Some(10)))),
            ("ten", None),
        ] {
            assert_eq!(tail(text).ok(), expected, "{text}");
        }
    }

    fn args(line: &[&str]) -> LogsArgs {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: LogsArgs,
        }
        let line = std::iter::once("logs").chain(line.iter().copied()).chain(["web"]);
        <Line as clap::Parser>::try_parse_from(line).unwrap().args
    }

    #[test]
    fn lines_carry_who_wrote_them_and_when() {
        let record = v1::LogRecord {
            task_id: "abcdefghijklmnopqrstuvwxy".to_owned(),
            service_name: "web".to_owned(),
            slot: 2,
            node_id: "n1".to_owned(),
            at: 1_500_000_000,
            stream: Stream::Stdout.into(),
            line: b"hi \xff".to_vec(),
        };
        for (flags, expected) in [
            (&[][..], &b"web.2.abcdefghijkl@host     | hi \xff\n"[..]),
            (&["--no-resolve"], b"web.2.abcdefghijkl@n1       | hi \xff\n"),
            (&["--no-task-ids"], b"web.2@host                  | hi \xff\n"),
            (&["--no-trunc"], b"web.2.abcdefghijklmnopqrstuvwxy@host    | hi \xff\n"),
            (&["-t"], b"1970-01-01T00:00:01.5Z web.2.abcdefghijkl@host     | hi \xff\n"),
            (&["--raw"], b"hi \xff\n"),
            (&["--raw", "-t"], b"1970-01-01T00:00:01.5Z hi \xff\n"),
        ] {
            let args = args(flags);
            let nodes = if args.no_resolve { BTreeMap::new() } else { [("n1".into(), "host".into())].into() };
            let writer = Writer { args: &args, nodes, width: 24 };
            let found = writer.line(&record);
            assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(expected), "{flags:?}");
        }
    }
}
