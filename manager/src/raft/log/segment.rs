//! The bytes of a log segment: a preamble, then records, then zeros up to the preallocated size.
//!
//! ```text
//! preamble   magic "RSWLOG" + format version (u16) | sequence number of the segment (u64)        16 bytes
//! record     length of the body (u32) | CRC32C (u32) | kind (u8), 3 zeros | synced (u32)
//!            | index (u64) | sealed body | zeros up to a multiple of 8
//! ```
//! Integers are little-endian. The CRC covers everything of the record but itself and the zeros, which have to be zeros. The body is sealed with (segment,
//! offset, kind, index) as additional data. `synced` is the offset up to which the file was known to be on disk when
//! the record was written: it tells a write that a power cut tore from bytes that went bad later. No record says that of
//! the last write. It is taken for torn, and cut, where bytes are missing: a sector that reads as zeros, or the end. The
//! last record in its full length with a wrong checksum is damage, and refused. What stays open is damage that looks like
//! a missing part: in the length of the last record, or a last byte that became zero.

/// Bytes before the first record.
pub const PREAMBLE_LEN: usize = 16;
/// Bytes of a record before its body.
pub const HEADER_LEN: usize = 24;
const MAGIC: [u8; 8] = *b"RSWLOG\x01\x00";
const ALIGN: usize = 8;
/// What a disk writes or does not write as a whole.
const SECTOR: usize = 512;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything but the entries, as it was when the segment was begun.
    State = 1,
    Entry = 2,
    Vote = 3,
    Committed = 4,
    /// Entries after the one named are void.
    Truncate = 5,
    /// Entries up to the one named are no longer needed.
    Purge = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::State, Self::Entry, Self::Vote, Self::Committed, Self::Truncate, Self::Purge]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Where a record lies and what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Of the header, from the start of the file.
    pub offset: usize,
    pub kind: Kind,
    pub index: u64,
    pub synced: u32,
    /// Of the sealed body.
    pub body_len: usize,
}

impl Record {
    pub fn body_offset(&self) -> usize {
        self.offset + HEADER_LEN
    }

    pub fn end(&self) -> usize {
        self.offset + record_len(self.body_len)
    }
}

/// Length in the file of a record whose sealed body has `body_len` bytes.
pub fn record_len(body_len: usize) -> usize {
    (HEADER_LEN + body_len).next_multiple_of(ALIGN)
}

/// The first bytes of segment `sequence`.
pub fn preamble(sequence: u64) -> [u8; PREAMBLE_LEN] {
    let mut bytes = [0; PREAMBLE_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

/// Whether these are the first bytes of segment `sequence`.
pub fn has_preamble(bytes: &[u8], sequence: u64) -> bool {
    bytes.get(..PREAMBLE_LEN) == Some(&preamble(sequence)[..])
}

/// What a body is sealed to.
pub fn place(sequence: u64, offset: usize, kind: Kind, index: u64) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
    bytes[16] = kind as u8;
    bytes[17..].copy_from_slice(&index.to_le_bytes());
    bytes
}

/// Appends a record to `out`: header, the body that `seal` appends, padding.
pub fn push_record(out: &mut Vec<u8>, kind: Kind, index: u64, synced: u32, seal: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    seal(out);
    let end = out.len();
    let body_len = u32::try_from(end - start - HEADER_LEN).expect("proposals are limited to a few MiB");
    let header = &mut out[start..start + HEADER_LEN];
    header[..4].copy_from_slice(&body_len.to_le_bytes());
    header[8] = kind as u8;
    header[12..16].copy_from_slice(&synced.to_le_bytes());
    header[16..].copy_from_slice(&index.to_le_bytes());
    let crc = checksum(&out[start..end]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_len(end - start - HEADER_LEN), 0);
}

fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The record at `offset`, if a whole and undamaged one begins there.
fn record_at(bytes: &[u8], offset: usize) -> Option<Record> {
    let body_len = u32_at(bytes, offset)? as usize;
    let (record, rest) = bytes.get(offset..)?.split_at_checked(HEADER_LEN.checked_add(body_len)?)?;
    let kind = Kind::from_byte(record[8])?;
    let mut padding = rest.iter().take(record_len(body_len) - record.len());
    if record[9..12] != [0; 3] || u32_at(record, 4)? != checksum(record) || padding.any(|byte| *byte != 0) {
        return None;
    }
    let index = u64::from_le_bytes(record[16..24].try_into().ok()?);
    Some(Record { offset, kind, index, synced: u32_at(record, 12)?, body_len })
}

/// What a segment holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Undamaged records from the front, without a gap.
    pub records: Vec<Record>,
    /// Where the next record goes, or where the damage begins.
    pub end: usize,
    pub tail: Tail,
}

/// What follows the last undamaged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Zeros: nothing was written there.
    Clean,
    /// Bytes of a write that never finished, so nobody was told that it had; they may be cut.
    Torn,
    /// Damage before a record that is whole: something that was on disk has changed.
    Corrupt {
        /// Offset of the whole record.
        next: usize,
    },
    /// The last record has its full length and the wrong bytes: something that was written has changed.
    Changed,
}

/// Reads the records of a segment whose preamble is in order.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut records = Vec::new();
    let mut end = PREAMBLE_LEN;
    while let Some(record) = record_at(bytes, end) {
        end = record.end();
        records.push(record);
    }
    let tail = if bytes.get(end..).unwrap_or_default().iter().all(|byte| *byte == 0) {
        Tail::Clean
    } else {
        judge_tail(bytes, end)
    };
    Scan { records, end, tail }
}

/// Decides between torn and corrupt: a power cut loses whole sectors of what was not synced, and since segments are
/// made of zeros, a lost sector reads as zeros. So damage before a whole record is only taken for a torn write where
/// that record was written before the damaged bytes were synced, and where such a hole is seen. Nothing after the last
/// record says that it was synced, but it too must miss something to be torn. A length that was damaged so that it
/// reaches beyond what is there cannot be told from a write that was cut.
fn judge_tail(bytes: &[u8], damage: usize) -> Tail {
    let mut at = damage + ALIGN;
    while at < bytes.len() {
        let Some(record) = record_at(bytes, at) else {
            at += ALIGN;
            continue;
        };
        let written_together = record.synced as usize <= damage;
        if !(written_together && has_hole(bytes, damage, at)) {
            return Tail::Corrupt { next: at };
        }
        at = record.end();
    }
    if misses_nothing(bytes, damage) { Tail::Changed } else { Tail::Torn }
}

/// Whether the damaged record at `offset` is there from its first to its last byte, as long as it says it is. The last
/// byte belongs to the seal's tag, so it is zero in one of 256 records that are whole; such a one passes as torn.
fn misses_nothing(bytes: &[u8], offset: usize) -> bool {
    let Some(body_len) = u32_at(bytes, offset) else { return false };
    let end = offset.saturating_add(HEADER_LEN).saturating_add(body_len as usize);
    if bytes.get(offset..end).is_none_or(|record| record.ends_with(&[0])) {
        return false;
    }
    let starts = (offset / SECTOR * SECTOR..end).step_by(SECTOR);
    let mut sectors = starts.map(|start| &bytes[start.max(offset)..(start + SECTOR).min(end)]);
    sectors.all(|sector| sector.iter().any(|byte| *byte != 0))
}

/// Whether a sector, as far as it lies in `from..to`, is all zeros.
fn has_hole(bytes: &[u8], from: usize, to: usize) -> bool {
    let mut start = from;
    while start < to {
        let end = (start / SECTOR + 1) * SECTOR;
        let part = &bytes[start..end.min(to)];
        // Padding alone is no evidence.
        if part.len() >= 2 * ALIGN && part.iter().all(|byte| *byte == 0) {
            return true;
        }
        start = end;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of three writes: one record, one record, and a batch of two that was synced as one.
    fn segment() -> (Vec<u8>, Vec<Record>) {
        let mut bytes = preamble(7).to_vec();
        for (index, kind, len) in [(0, Kind::State, 60), (1, Kind::Entry, 700), (2, Kind::Vote, 41)] {
            let synced = bytes.len() as u32;
            push_record(&mut bytes, kind, index, synced, |out| out.resize(out.len() + len, 0xab));
        }
        let synced = bytes.len() as u32;
        for index in [3, 4] {
            push_record(&mut bytes, Kind::Entry, index, synced, |out| out.resize(out.len() + 1500, 0xcd));
        }
        bytes.resize(16384, 0);
        let scan = scan(&bytes);
        assert_eq!((scan.records.len(), scan.tail), (5, Tail::Clean));
        assert!(has_preamble(&bytes, 7) && !has_preamble(&bytes, 8));
        (bytes, scan.records)
    }

    #[test]
    fn a_flipped_byte_of_the_last_record_is_a_change_but_for_its_length() {
        let (bytes, records) = segment();
        let last = records[4];
        for at in last.offset..last.end() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            let scan = scan(&bad);
            // A greater length looks like a write of which the end is missing.
            let longer = (last.offset..last.offset + 4).contains(&at) && bad[at] > bytes[at];
            let expected = if longer { Tail::Torn } else { Tail::Changed };
            assert_eq!((scan.end, scan.tail), (last.offset, expected), "byte {at}");
        }
    }

    #[test]
    fn a_last_record_that_lost_any_of_its_sectors_is_torn() {
        let (mut bytes, records) = segment();
        // Of every alignment that a record can have to the sectors.
        for _ in 0..SECTOR / ALIGN {
            let last = scan(&bytes).records.pop().unwrap();
            for start in (last.offset / SECTOR * SECTOR..last.end()).step_by(SECTOR) {
                let mut bad = bytes.clone();
                bad[start.max(last.offset)..(start + SECTOR).min(last.end())].fill(0);
                let scan = scan(&bad);
                // Of a record that has all its bytes in one sector nothing is left.
                let nothing = start <= last.offset && last.end() <= start + SECTOR;
                let expected = if nothing { Tail::Clean } else { Tail::Torn };
                assert_eq!((scan.end, scan.tail), (last.offset, expected), "{last:?}, sector at {start}");
            }
            bytes.truncate(last.offset);
            push_record(&mut bytes, Kind::Purge, 1, 0, |out| out.resize(out.len() + 8, 0xee));
            push_record(&mut bytes, Kind::Entry, 5, 0, |out| out.resize(out.len() + 1200, 0xcd));
            bytes.resize(32768, 0);
        }
        assert!(records.len() == 5);
    }

    #[test]
    fn every_flipped_byte_before_the_last_record_is_corruption() {
        let (bytes, records) = segment();
        for record in &records[..4] {
            for at in record.offset..record.end() {
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                let scan = scan(&bad);
                assert_eq!(scan.end, record.offset, "byte {at}");
                assert!(matches!(scan.tail, Tail::Corrupt { next } if next == record.end()), "byte {at}");
            }
        }
    }

    #[test]
    fn a_write_cut_at_any_byte_is_torn() {
        let (bytes, records) = segment();
        for record in &records[1..] {
            for cut in (record.offset + 1..record.offset + HEADER_LEN + record.body_len).step_by(5) {
                let mut bad = bytes.clone();
                bad[cut..].fill(0);
                let scan = scan(&bad);
                assert_eq!((scan.end, scan.tail), (record.offset, Tail::Torn), "cut at {cut}");
            }
        }
        let mut short = bytes;
        short.truncate(records[4].offset + 30);
        assert_eq!(scan(&short).tail, Tail::Torn);
    }

    #[test]
    fn a_sector_lost_within_the_last_batch_is_torn_but_before_it_corrupt() {
        let (bytes, records) = segment();
        let lose = |record: &Record| {
            let sector = (record.offset / SECTOR + 1) * SECTOR;
            assert!(sector + SECTOR < record.end());
            let mut bad = bytes.clone();
            bad[sector..sector + SECTOR].fill(0);
            scan(&bad).tail
        };
        assert_eq!(lose(&records[3]), Tail::Torn);
        let mut bad = bytes.clone();
        bad[records[1].offset..records[1].end()].fill(0);
        assert_eq!(scan(&bad).tail, Tail::Corrupt { next: records[2].offset });
    }
}
