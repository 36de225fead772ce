use super::*;

use rswarm_types::Version;
use rswarm_types::netmap::{EndpointState, MapEndpoint};

use crate::names::tests::{address, large_map, map, network, task};

/// `map()` with some tasks more, each in a change of its own.
fn grown(from: &NetworkMap, number: u16) -> (NetworkMap, NetworkChange) {
    let mut after = from.clone();
    let (_, like) = from.endpoints.first_key_value().unwrap();
    let endpoint = MapEndpoint { addresses: [(network(1), address(1, 99))].into(), ..like.clone() };
    after.endpoints.insert(task(number), endpoint);
    after.index = Version(from.index.0 + 1);
    let change = after.since(from);
    (after, change)
}

#[test]
fn what_is_written_is_read_whole_and_by_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = MapReader::new(dir.path());
    assert!(!reader.refresh().unwrap() && reader.map() == &NetworkMap::default());
    let mut before = map();
    let mut writer = MapWriter::create(dir.path(), &before).unwrap();
    assert!(reader.refresh().unwrap() && reader.map() == &before);
    assert!(!reader.refresh().unwrap(), "nothing is new");
    for number in 200..210 {
        let (after, change) = grown(&before, number);
        writer.change(&change, &after).unwrap();
        before = after;
        if number % 2 == 0 {
            assert!(reader.refresh().unwrap() && reader.map() == &before);
        }
    }
    let mut fresh = MapReader::new(dir.path());
    assert!(fresh.refresh().unwrap() && fresh.into_map() == before);
    let full = NetworkChange { full: true, index: before.index, set: map(), ..NetworkChange::default() };
    writer.change(&full, &map()).unwrap();
    assert!(reader.refresh().unwrap() && reader.map() == &map());
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    assert!(reader.refresh().unwrap() && reader.map() == &NetworkMap::default());
    assert!(!reader.refresh().unwrap());
}

#[test]
fn the_file_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = map();
    let mut writer = MapWriter::create(dir.path(), &before).unwrap();
    let (mut reader, mut rewritten) = (MapReader::new(dir.path()), false);
    for index in 0..2000 {
        let mut after = before.clone();
        after.index = Version(before.index.0 + 1);
        let state = if index % 2 == 0 { EndpointState::Draining } else { EndpointState::Ready };
        after.endpoints.get_mut(&task(21)).unwrap().state = state;
        writer.change(&after.since(&before), &after).unwrap();
        rewritten |= writer.changes_len == 0;
        let len = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len();
        assert!(len <= 2 * writer.whole_len + MAX_CHANGES, "{len}");
        before = after;
    }
    assert!(rewritten && reader.refresh().unwrap() && reader.map() == &before);
}

#[test]
fn half_a_change_is_waited_for_and_nonsense_is_an_error_that_leaves_the_last_good_map() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let before = map();
    let (after, change) = grown(&before, 200);
    let whole = rmp_serde::to_vec_named(&before).unwrap();
    let change = rmp_serde::to_vec_named(&change).unwrap();
    let mut reader = MapReader::new(dir.path());
    let all = [&whole[..], &change].concat();
    std::fs::write(&path, &whole).unwrap();
    assert!(reader.refresh().unwrap());
    for end in whole.len() + 1..all.len() {
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&all[end - 1..end]).unwrap();
        assert!(!reader.refresh().unwrap() && reader.map() == &before, "{end}");
    }
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&all[all.len() - 1..]).unwrap();
    assert!(reader.refresh().unwrap() && reader.map() == &after);
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"nonsense").unwrap();
    assert!(matches!(reader.refresh(), Err(MapError::Decode { .. })));
    assert_eq!(reader.map(), &after);
    // Another file, of which no map can be made.
    for torn in [&whole[..whole.len() - 1], b"", b"\xc1"] {
        let new = dir.path().join("new");
        std::fs::write(&new, torn).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert!(matches!(reader.refresh(), Err(MapError::Decode { .. })));
        assert_eq!(reader.map(), &after);
    }
    MapWriter::create(dir.path(), &before).unwrap();
    assert!(reader.refresh().unwrap() && reader.map() == &before);
}

#[test]
fn a_change_of_a_large_map_writes_little() {
    let dir = tempfile::tempdir().unwrap();
    let before = large_map(1000, 10);
    let mut writer = MapWriter::create(dir.path(), &before).unwrap();
    let (after, change) = grown(&before, 20_000);
    writer.change(&change, &after).unwrap();
    assert!(writer.whole_len > 1_000_000 && writer.changes_len < 1000, "{writer:?}");
}
