//! Reading a task's log: what is asked for of it, and on with what comes until the container has ended.

use std::time::Duration;

use rswarm_runtime::log;
use rswarm_types::{TaskId, Timestamp};
use tokio::sync::mpsc;

use super::end::{until_readable, watch};
use super::{ContainerExecutor, Error, blocking};
use crate::executor::{Failure, LogLine, LogQuery};

/// Between two looks for a log that does not exist yet.
const LOG_LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Records read from a log in one go.
const RECORDS_AT_ONCE: usize = 256;
/// A longer line of output is shown as several.
const LINE_BYTES_MAX: usize = 256 << 10;

impl ContainerExecutor {
    pub(super) async fn logs(
        &self,
        task: TaskId,
        query: LogQuery,
        lines: mpsc::Sender<LogLine>,
    ) -> Result<(), Failure> {
        let directory = self.node.containers.directory(&task.to_string()).map_err(Error::from)?;
        while !directory.is_dir() {
            if !query.follow {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(LOG_LOOK_PERIOD) => {}
                () = lines.closed() => return Ok(()),
            }
        }
        let options = log::ReadOptions {
            since_unix_nanos: Some(i64::try_from(query.since.0).unwrap_or(i64::MAX)),
            tail: query.tail,
        };
        let read_error = |source| Error::File { action: "read the log in", path: directory.clone(), source };
        let path = directory.clone();
        let mut reader = blocking(move || log::Reader::open(&path, options)).await?.map_err(read_error)?;
        let node = self.node.clone();
        let ended = match query.follow {
            true => blocking(move || node.find(task)).await??.and_then(|container| container.watch().ok()),
            false => None,
        };
        let ended = ended.map(watch).transpose()?;
        let mut assembler = Assembler::default();
        let mut last_round = ended.is_none();
        loop {
            // Made before reading, so that nothing written from here on goes unnoticed.
            let changes = if last_round { None } else { reader.changes().ok() };
            loop {
                let (next, records) = blocking(move || read_records(reader)).await?;
                reader = next;
                let records = records.map_err(read_error)?;
                if records.is_empty() {
                    break;
                }
                for line in records.iter().filter_map(|record| assembler.add(record)) {
                    if lines.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            let (Some(ended), Some(changes)) = (&ended, changes) else { return Ok(()) };
            tokio::select! {
                changed = until_readable(changes) => changed?,
                _ = ended.readable() => last_round = true,
                () = lines.closed() => return Ok(()),
            }
        }
    }
}

fn read_records(mut reader: log::Reader) -> (log::Reader, std::io::Result<Vec<log::Record>>) {
    let mut records = Vec::new();
    while records.len() < RECORDS_AT_ONCE {
        match reader.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => break,
            Err(error) => return (reader, Err(error)),
        }
    }
    (reader, Ok(records))
}

/// Puts pieces of long lines together, each stream's by itself.
#[derive(Default)]
struct Assembler {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Assembler {
    fn add(&mut self, record: &log::Record) -> Option<LogLine> {
        let stderr = record.stream == log::Stream::Stderr;
        let pieces = if stderr { &mut self.stderr } else { &mut self.stdout };
        pieces.extend_from_slice(&record.line);
        if record.partial && pieces.len() < LINE_BYTES_MAX {
            return None;
        }
        let at = Timestamp(u64::try_from(record.at_unix_nanos).unwrap_or_default());
        Some(LogLine { at, stderr, line: std::mem::take(pieces) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_line_are_put_together() {
        let record = |stream, line: &[u8], partial| log::Record {
            at_unix_nanos: 1,
            stream,
            line: line.to_vec(),
            partial,
        };
        let mut assembler = Assembler::default();
        let (out, err) = (log::Stream::Stdout, log::Stream::Stderr);
        assert_eq!(assembler.add(&record(out, b"one ", true)), None);
        let line = |stderr, line: &[u8]| Some(LogLine { at: Timestamp(1), stderr, line: line.to_vec() });
        assert_eq!(assembler.add(&record(err, b"warning", false)), line(true, b"warning"));
        assert_eq!(assembler.add(&record(out, b"line", false)), line(false, b"one line"));
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(assembler.add(&record(out, &long, true)), line(false, &long), "a line has a bound");
    }
}
