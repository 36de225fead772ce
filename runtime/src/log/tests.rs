use std::path::Path;

use super::*;
use crate::request::LogOptions;

fn writer(directory: &Path, max_size_bytes: u64, max_files: u32) -> Writer {
    Writer::open(directory, LogOptions { max_size_bytes, max_files, ..Default::default() }).unwrap()
}

fn read(reader: &mut Reader) -> Vec<Record> {
    std::iter::from_fn(|| reader.next_record().unwrap()).collect()
}

fn lines(reader: &mut Reader) -> Vec<String> {
    read(reader).into_iter().map(|record| String::from_utf8(record.line).unwrap()).collect()
}

fn open(directory: &Path) -> Reader {
    Reader::open(directory, ReadOptions::default()).unwrap()
}

#[test]
fn records_come_back_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 1 << 20, 2);
    writer.write(Stream::Stdout, b"one\ntw", 5);
    writer.write(Stream::Stderr, b"oops\n\n", 6);
    writer.write(Stream::Stdout, b"o\nthree", 7);
    writer.finish(8);
    let record = |at_unix_nanos, stream, line: &str| Record {
        at_unix_nanos,
        stream,
        line: line.as_bytes().to_vec(),
        partial: false,
    };
    let expected = [
        record(5, Stream::Stdout, "one"),
        record(6, Stream::Stderr, "oops"),
        record(6, Stream::Stderr, ""),
        record(7, Stream::Stdout, "two"),
        record(8, Stream::Stdout, "three"),
    ];
    assert_eq!(read(&mut open(directory.path())), expected);
    let text = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(text.starts_with("5 stdout F one\n6 stderr F oops\n"), "{text}");
}

#[test]
fn long_line_is_split_and_nothing_of_it_is_lost() {
    for len in [CONTENT_MAX - 1, CONTENT_MAX, CONTENT_MAX + 1, 3 * CONTENT_MAX, 3 * CONTENT_MAX + 5] {
        for chunk in [1000, 4096, CONTENT_MAX, 70_000] {
            let directory = tempfile::tempdir().unwrap();
            let mut writer = writer(directory.path(), 1 << 20, 2);
            let text: Vec<u8> = (0..len).map(|at| b'a' + (at % 26) as u8).chain(*b"\nnext\n").collect();
            for piece in text.chunks(chunk) {
                writer.write(Stream::Stdout, piece, 1);
            }
            let records = read(&mut open(directory.path()));
            let pieces = len.div_ceil(CONTENT_MAX);
            assert_eq!(records.len(), pieces + 1, "{len} in chunks of {chunk}");
            assert!(records[..pieces - 1].iter().all(|record| record.partial));
            assert!(!records[pieces - 1].partial);
            let joined: Vec<u8> = records[..pieces].iter().flat_map(|record| record.line.clone()).collect();
            assert_eq!(joined, text[..len]);
        }
    }
}

#[test]
fn files_are_bounded_in_size_and_number() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 1000, 3);
    for number in 0..500 {
        writer.write(Stream::Stdout, format!("line {number:04}\n").as_bytes(), 1);
    }
    let mut names: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert!(entry.metadata().unwrap().len() <= 1000);
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    let found = lines(&mut open(directory.path()));
    let expected: Vec<String> = (500 - found.len()..500).map(|number| format!("line {number:04}")).collect();
    assert!(found.len() > 80);
    assert_eq!(found, expected);
}

#[test]
fn follower_misses_no_line_over_rotations() {
    let directory = tempfile::tempdir().unwrap();
    let mut reader = open(directory.path());
    assert_eq!(reader.next_record().unwrap(), None);
    let mut writer = writer(directory.path(), 300, 3);
    let mut found = Vec::new();
    for number in 0..400 {
        writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), 1);
        // Every 11 to 25 lines a rotation; reading every 17 keeps the reader at most two files behind.
        if number % 17 == 0 {
            found.extend(lines(&mut reader));
        }
    }
    found.extend(lines(&mut reader));
    assert_eq!(found, (0..400).map(|number| number.to_string()).collect::<Vec<_>>());
}

/// A rotation renames one file after the other, the last one first; a reader may look at any moment of it.
#[test]
fn a_rotation_under_way_hides_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 100, 20);
    let written: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for line in &written {
        writer.write(Stream::Stdout, format!("{line}\n").as_bytes(), 1);
    }
    let last = (0..20).rev().find(|number| file(directory.path(), *number).exists()).unwrap();
    assert!(last > 3, "{last}");
    for number in (0..=last).rev() {
        std::fs::rename(file(directory.path(), number), file(directory.path(), number + 1)).unwrap();
        assert_eq!(lines(&mut open(directory.path())), written, "without number {number}");
    }
}

/// Whoever lists the files may be held up for any number of rotations between one number and the next.
#[test]
fn files_that_were_rotated_while_they_were_listed_are_listed_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 30, 6);
    let mut numbers = 0..;
    let mut rotate = |times: usize| {
        // Two lines fill a file.
        for number in numbers.by_ref().take(2 * times) {
            writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), 1);
        }
    };
    rotate(6);
    let reader = open(directory.path());
    let mut look = |held_up_before: usize, rotations: usize| {
        let mut opened = 0;
        let found = reader.scan(None, |path| {
            if opened == held_up_before {
                rotate(rotations);
            }
            opened += 1;
            std::fs::File::open(path)
        });
        found.unwrap()
    };
    for before in 1..6 {
        for rotations in 1..4 {
            assert!(look(before, rotations).is_none(), "{rotations} rotations before number {before}");
        }
    }
    let read = |file: std::fs::File| std::io::read_to_string(file).unwrap();
    let text: String = look(usize::MAX, 0).unwrap().into_iter().map(read).collect();
    let lines: Vec<u32> =
        text.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect();
    assert_eq!((lines.len(), lines.is_sorted()), (12, true), "{lines:?}");
}

#[test]
fn reader_that_was_overtaken_goes_on_with_the_oldest_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 200, 2);
    writer.write(Stream::Stdout, b"first\n", 1);
    let mut reader = open(directory.path());
    assert_eq!(lines(&mut reader), ["first"]);
    for number in 0..200 {
        writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), 1);
    }
    let found = lines(&mut reader);
    assert_eq!(found.last().unwrap(), "199");
    // It still had the file it was in, then a gap, then what is kept, in order.
    assert!(found.iter().is_sorted_by_key(|line| line.parse::<u32>().unwrap()));
}

#[test]
fn tail_and_since_choose_the_same_records_as_filtering_all() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 4000, 4);
    for number in 0..300 {
        writer.write(Stream::Stdout, format!("{number}\n").as_bytes(), 1000 + number);
    }
    writer.write(Stream::Stdout, b"unfinished", 2000);
    let all = lines(&mut open(directory.path()));
    for tail in [0, 1, 2, 99, 150, 299, 300, 301, 5000] {
        let options = ReadOptions { tail: Some(tail), ..Default::default() };
        let found = lines(&mut Reader::open(directory.path(), options).unwrap());
        assert_eq!(found, all[all.len().saturating_sub(tail as usize)..], "tail {tail}");
    }
    let options = ReadOptions { since_unix_nanos: Some(1250), tail: Some(100) };
    let found = lines(&mut Reader::open(directory.path(), options).unwrap());
    assert_eq!(found, (250..300).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn tail_counts_lines_and_not_their_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 1 << 20, 2);
    writer.write(Stream::Stdout, b"before\n", 1);
    let long = [vec![b'x'; 100_000], b"\n".to_vec()].concat();
    writer.write(Stream::Stdout, &long, 2);
    let options = ReadOptions { tail: Some(1), ..Default::default() };
    let records = read(&mut Reader::open(directory.path(), options).unwrap());
    assert_eq!(records.iter().map(|record| record.line.len()).sum::<usize>(), 100_000);
    assert_eq!(records.len(), 7);
}

#[test]
fn growth_is_announced() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let directory = tempfile::tempdir().unwrap();
    let mut writer = writer(directory.path(), 1 << 20, 2);
    let mut reader = open(directory.path());
    let changes = reader.changes().unwrap();
    assert_eq!(reader.next_record().unwrap(), None);
    writer.write(Stream::Stdout, b"x\n", 1);
    let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&limit)).unwrap(), 1);
    assert_eq!(lines(&mut reader), ["x"]);
}
