//! A streaming tar reader for hostile input: every length is bounded before memory is taken for it.
//!
//! Reads ustar, GNU (long names, base-256 numbers, sparse) and PAX (path, linkpath, size, ids, mtime, xattrs, sparse
//! 0.1 and 1.0). What it does not know it refuses by name. It touches no file; [`super`] does.
//!
//! Source: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format" and
//! "Storing Sparse Files".

use std::io::{self, Read};

use thiserror::Error;

const BLOCK: usize = 512;
/// Longest extension (long name, PAX header) that is read into memory. Linux limits an xattr to 64 KiB and a path to
/// 4 KiB, so this leaves room for a dozen large attributes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most pieces of one sparse file.
const MAX_SPARSE_PIECES: usize = 1 << 16;

/// Headers of one archive, extensions and sparse maps included, in bytes: two million entries of 4 KiB.
const MAX_HEADERS: u64 = 8 << 30;

/// Why a tar stream cannot be read further.
#[derive(Debug, Error)]
pub enum TarError {
    #[error("failed to read the archive after {position} bytes")]
    Read {
        position: u64,
        #[source]
        source: io::Error,
    },
    #[error("archive is truncated after {position} bytes")]
    Truncated { position: u64 },
    #[error("no valid tar header at byte {position}: {reason}")]
    Header { position: u64, reason: &'static str },
    #[error(
        "extension header at byte {position} is {size} bytes long, more than the limit of {MAX_EXTENSION}"
    )]
    ExtensionTooLong { position: u64, size: u64 },
    #[error("the headers up to byte {position} are longer than the limit of {limit} bytes")]
    HeadersTooLong { position: u64, limit: u64 },
    #[error("entry `{entry}` has {problem}")]
    Entry { entry: String, problem: String },
}

/// A name and its value.
type Record = (Vec<u8>, Vec<u8>);

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// A stretch of an entry's data within the file it stands for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub length: u64,
}

/// One file, directory, link or node as the archive describes it. Names are bytes, unchecked.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, including set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Length of the file in bytes, holes included.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<Record>,
    /// Where the data that follows belongs, in order and without overlap; the rest of the file is holes.
    pub pieces: Vec<Piece>,
}

impl Entry {
    /// The entry's name for messages.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads entries one after the other; between two calls of [`TarReader::next`] its `Read` gives the entry's data.
pub struct TarReader<R> {
    source: R,
    position: u64,
    /// Data bytes of the current entry not read yet, then the padding after them.
    remaining: u64,
    padding: u64,
    headers_left: u64,
}

/// What the extension headers before an entry said about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<Record>,
}

impl Extensions {
    fn pax(&self, key: &str) -> Option<&[u8]> {
        // POSIX: of several records with one key the last one counts.
        self.pax.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v.as_slice())
    }

    fn pax_number(&self, key: &str, entry: &str) -> Result<Option<u64>, TarError> {
        let Some(value) = self.pax(key) else { return Ok(None) };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| TarError::Entry {
            entry: entry.to_owned(),
            problem: format!("an invalid PAX record `{key}={}`", String::from_utf8_lossy(value)),
        })
    }
}

impl<R: Read> TarReader<R> {
    pub fn new(source: R) -> Self {
        TarReader { source, position: 0, remaining: 0, padding: 0, headers_left: MAX_HEADERS }
    }

    /// Gives the underlying reader back, to drain what follows the archive's end.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// Advances to the next entry, skipping what is left of the current one; `None` at the archive's end.
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        loop {
            let position = self.position;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header { block: &block, position };
            header.check()?;
            let size = header.number(124, 12)?;
            match block[156] {
                b'L' => extensions.path = Some(trim_nul(self.extension(position, size)?)),
                b'K' => extensions.link = Some(trim_nul(self.extension(position, size)?)),
                b'x' => extensions.pax = parse_pax(&self.extension(position, size)?, position)?,
                // Global records name defaults such as a git commit; none of them matters to a file tree.
                b'g' => drop(self.extension(position, size)?),
                _ => return self.entry(&header, size, &extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header<'_>, size: u64, extensions: &Extensions) -> Result<Entry, TarError> {
        let path = extensions
            .pax("GNU.sparse.name")
            .or(extensions.pax("path"))
            .map(<[u8]>::to_vec)
            .or_else(|| extensions.path.clone())
            .unwrap_or_else(|| header.path());
        let link = extensions
            .pax("linkpath")
            .map(<[u8]>::to_vec)
            .or_else(|| extensions.link.clone())
            .unwrap_or_else(|| header.text(157, 100).to_vec());
        let name = String::from_utf8_lossy(&path).into_owned();
        let problem = |problem: String| TarError::Entry { entry: name.clone(), problem };
        let kind = match header.block[156] {
            b'\0' | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'\0' | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(problem(format!("the unknown type `{}`", char::from(other).escape_default())));
            }
        };
        let id = |key: &str, at: usize| -> Result<u32, TarError> {
            let number = extensions.pax_number(key, &name)?.map_or_else(|| header.number(at, 8), Ok)?;
            // The kernel reads the last number of all as "leave it as it is", which is root's.
            let known = u32::try_from(number).ok().filter(|id| *id != u32::MAX);
            known.ok_or_else(|| problem(format!("the {key} {number}, expected at most 4294967294")))
        };
        let mtime = match extensions.pax("mtime") {
            Some(text) => parse_time(text).ok_or_else(|| problem("an invalid PAX mtime".into()))?,
            None => (header.signed(136, 12)?, 0),
        };
        let mut entry = Entry {
            mode: (header.number(100, 8)? & 0o7777) as u32,
            uid: id("uid", 108)?,
            gid: id("gid", 116)?,
            mtime,
            size: 0,
            device: (header.number(329, 8)? as u32, header.number(337, 8)? as u32),
            xattrs: extensions
                .pax
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))
                })
                .collect(),
            pieces: Vec::new(),
            path,
            link,
            kind,
        };
        // Only files carry data; writers leave a size on links and directories that means nothing.
        if kind == Kind::File {
            let stored = extensions.pax_number("size", &name)?.unwrap_or(size);
            self.remaining = stored;
            self.padding = padding(stored);
            entry.size = stored;
            entry.pieces = vec![Piece { offset: 0, length: stored }];
            if header.block[156] == b'S' {
                (entry.size, entry.pieces) = self.gnu_sparse(header, &problem)?;
            } else if extensions.pax.iter().any(|(key, _)| key.starts_with(b"GNU.sparse.")) {
                (entry.size, entry.pieces) = self.pax_sparse(extensions, &name, &problem)?;
            }
            check_pieces(&entry, self.remaining).map_err(|text| problem(text.to_owned()))?;
        }
        Ok(entry)
    }

    /// The map of an old GNU sparse entry: four pieces in the header, more in blocks after it.
    fn gnu_sparse(
        &mut self,
        header: &Header<'_>,
        problem: &dyn Fn(String) -> TarError,
    ) -> Result<(u64, Vec<Piece>), TarError> {
        let mut pieces = Vec::new();
        let mut collect = |header: &Header<'_>, at: usize, count: usize| -> Result<(), TarError> {
            for start in (at..).step_by(24).take(count).take_while(|start| header.block[*start] != 0) {
                pieces.push(Piece {
                    offset: header.number(start, 12)?,
                    length: header.number(start + 12, 12)?,
                });
            }
            if pieces.len() > MAX_SPARSE_PIECES {
                Err(problem("too many sparse pieces".into()))
            } else {
                Ok(())
            }
        };
        collect(header, 386, 4)?;
        let mut more = header.block[482] != 0;
        while more {
            let position = self.position;
            let block = self.block()?.ok_or(TarError::Truncated { position })?;
            collect(&Header { block: &block, position }, 0, 21)?;
            more = block[504] != 0;
        }
        Ok((header.number(483, 12)?, pieces))
    }

    /// The map of a PAX sparse entry: in a record (0.1) or before the data (1.0).
    fn pax_sparse(
        &mut self,
        extensions: &Extensions,
        name: &str,
        problem: &dyn Fn(String) -> TarError,
    ) -> Result<(u64, Vec<Piece>), TarError> {
        let invalid = || problem("an invalid sparse map".into());
        let size_key = if extensions.pax("GNU.sparse.realsize").is_some() {
            "GNU.sparse.realsize"
        } else {
            "GNU.sparse.size"
        };
        let size = extensions.pax_number(size_key, name)?.ok_or_else(invalid)?;
        let mut numbers: Vec<u64> = Vec::new();
        if extensions.pax("GNU.sparse.major") == Some(b"1") {
            let mut block: Vec<u8> = Vec::new();
            let mut used = 0;
            let mut line = || -> Result<u64, TarError> {
                let mut number: Option<u64> = None;
                loop {
                    if used == block.len() {
                        if self.remaining < BLOCK as u64 {
                            return Err(invalid());
                        }
                        let position = self.position;
                        block = self.block()?.ok_or(TarError::Truncated { position })?.to_vec();
                        self.remaining -= BLOCK as u64;
                        used = 0;
                    }
                    let byte = block[used];
                    used += 1;
                    number = match byte {
                        b'\n' => return number.ok_or_else(invalid),
                        b'0'..=b'9' => number
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|n| n.checked_add(u64::from(byte - b'0')))
                            .map(Some)
                            .ok_or_else(invalid)?,
                        _ => return Err(invalid()),
                    };
                }
            };
            let count = line()?;
            if count > MAX_SPARSE_PIECES as u64 {
                return Err(problem("too many sparse pieces".into()));
            }
            for _ in 0..count * 2 {
                numbers.push(line()?);
            }
        } else if let Some(map) = extensions.pax("GNU.sparse.map") {
            for part in map.split(|b| *b == b',') {
                let number = std::str::from_utf8(part).ok().and_then(|text| text.parse().ok());
                numbers.push(number.ok_or_else(invalid)?);
            }
        } else {
            return Err(problem("the unsupported sparse format 0.0".into()));
        }
        if !numbers.len().is_multiple_of(2) || numbers.len() > 2 * MAX_SPARSE_PIECES {
            return Err(invalid());
        }
        Ok((size, numbers.chunks_exact(2).map(|pair| Piece { offset: pair[0], length: pair[1] }).collect()))
    }

    fn extension(&mut self, position: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLong { position, size });
        }
        self.spend(size)?;
        self.remaining = size;
        self.padding = padding(size);
        let mut data = Vec::with_capacity(size as usize);
        let at = self.position;
        self.by_ref().read_to_end(&mut data).map_err(|source| read_error(at, source))?;
        self.skip_rest()?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let mut skip = self.remaining + self.padding;
        (self.remaining, self.padding) = (0, 0);
        let mut buffer = [0u8; 16 * 1024];
        while skip > 0 {
            let want = skip.min(buffer.len() as u64) as usize;
            match self.source.read(&mut buffer[..want]) {
                Ok(0) => return Err(TarError::Truncated { position: self.position }),
                Ok(count) => {
                    skip -= count as u64;
                    self.position += count as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(read_error(self.position, source)),
            }
        }
        Ok(())
    }

    /// The next header block; `None` at a block of zeros or where the stream ends between entries.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        Ok(self.block()?.filter(|block| block.iter().any(|byte| *byte != 0)))
    }

    /// Counts bytes of headers, of which there is no end otherwise: files' data is counted by who asks for it.
    fn spend(&mut self, bytes: u64) -> Result<(), TarError> {
        let left = self.headers_left.checked_sub(bytes);
        let (position, limit) = (self.position, MAX_HEADERS);
        self.headers_left = left.ok_or(TarError::HeadersTooLong { position, limit })?;
        Ok(())
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        self.spend(BLOCK as u64)?;
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated { position: self.position }),
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(read_error(self.position, source)),
            }
        }
        Ok(Some(block))
    }
}

/// The data of the current entry; a stream that ends within it is an error and never a short file.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.remaining.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

/// Tells a stream that ended from one that could not be read.
pub(super) fn read_error(position: u64, source: io::Error) -> TarError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        TarError::Truncated { position }
    } else {
        TarError::Read { position, source }
    }
}

struct Header<'a> {
    block: &'a [u8; BLOCK],
    position: u64,
}

impl Header<'_> {
    /// Verifies the checksum, as unsigned sum or as the signed sum of some old writers.
    fn check(&self) -> Result<(), TarError> {
        let bytes =
            || self.block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
        let stored = self.number(148, 8)?;
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            return Ok(());
        }
        Err(TarError::Header { position: self.position, reason: "its checksum is wrong" })
    }

    fn text(&self, at: usize, length: usize) -> &[u8] {
        let field = &self.block[at..at + length];
        &field[..field.iter().position(|b| *b == 0).unwrap_or(length)]
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if &self.block[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    fn number(&self, at: usize, length: usize) -> Result<u64, TarError> {
        u64::try_from(self.signed(at, length)?)
            .map_err(|_| TarError::Header { position: self.position, reason: "a number is negative" })
    }

    /// Octal text, or a big-endian two's complement number if the first bit is set (GNU); blank is zero.
    fn signed(&self, at: usize, length: usize) -> Result<i64, TarError> {
        let field = &self.block[at..at + length];
        let invalid = |reason| TarError::Header { position: self.position, reason };
        if field[0] & 0x80 != 0 {
            let start = if field[0] & 0x40 != 0 { -1i128 } else { 0 };
            let first = i128::from(field[0] & 0x7f) | if start < 0 { !0x7f } else { 0 };
            let value = field[1..]
                .iter()
                .try_fold(first, |value, byte| value.checked_mul(256).map(|value| value | i128::from(*byte)));
            return value.and_then(|v| i64::try_from(v).ok()).ok_or_else(|| invalid("a number is too large"));
        }
        let text = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
        text.iter().try_fold(0i64, |value, byte| match byte {
            b'0'..=b'7' => Ok(value * 8 + i64::from(byte - b'0')),
            _ => Err(invalid("a number is not octal")),
        })
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn trim_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

/// Splits `"<length> <key>=<value>\n"` records.
fn parse_pax(mut data: &[u8], position: u64) -> Result<Vec<Record>, TarError> {
    let invalid = || TarError::Header { position, reason: "its PAX records are malformed" };
    let mut records = Vec::new();
    while !data.is_empty() && data[0] != 0 {
        let space = data.iter().position(|b| *b == b' ').ok_or_else(invalid)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(invalid)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(invalid());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(invalid)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

/// `[-]seconds[.fraction]`, cut to nanoseconds.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

fn check_pieces(entry: &Entry, stored: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    let mut total = 0u64;
    for piece in &entry.pieces {
        let next = piece.offset.checked_add(piece.length).ok_or("an invalid sparse map")?;
        if piece.offset < end || next > entry.size {
            return Err("an invalid sparse map");
        }
        end = next;
        total += piece.length;
    }
    if total == stored { Ok(()) } else { Err("a sparse map that disagrees with its size") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_keep_their_fraction() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("x", None),
            ("1.x", None),
        ] {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for data in ["5 a=b", "0 a=b\n", "99 a=b\n", "6 ab=\n\n", "x a=b\n", "5 ab\n"] {
            let parsed = parse_pax(data.as_bytes(), 0);
            assert!(parsed.is_err() || data == "6 ab=\n\n" && parsed.is_ok(), "{data:?}: {parsed:?}");
        }
        assert_eq!(parse_pax(b"6 a=b\n", 0).unwrap(), [(b"a".to_vec(), b"b".to_vec())]);
    }

    #[test]
    fn headers_without_an_entry_come_to_an_end() {
        let mut global = [0u8; 2 * BLOCK];
        global[124..135].copy_from_slice(b"00000000010");
        global[156] = b'g';
        global[512..520].copy_from_slice(b"8 a=bcd\n");
        global[148..156].fill(b' ');
        let sum: u64 = global[..BLOCK].iter().copied().map(u64::from).sum();
        global[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        struct Endless([u8; 2 * BLOCK], usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let from = &self.0[self.1 % (2 * BLOCK)..];
                let count = from.len().min(buffer.len());
                buffer[..count].copy_from_slice(&from[..count]);
                self.1 += count;
                Ok(count)
            }
        }
        let mut tar = TarReader { headers_left: 100_000, ..TarReader::new(Endless(global, 0)) };
        let error = tar.next().unwrap_err();
        assert!(matches!(error, TarError::HeadersTooLong { .. }), "{error}");
    }

    #[test]
    fn base_256_numbers_are_signed() {
        let mut block = [0u8; BLOCK];
        block[136..148].copy_from_slice(&[0xff; 12]);
        block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let header = Header { block: &block, position: 0 };
        assert_eq!(header.signed(136, 12).unwrap(), -1);
        assert_eq!(header.number(124, 12).unwrap(), 1 << 32);
    }
}
