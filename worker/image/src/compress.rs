//! Telling how a stream is compressed by its first bytes, and reading through it.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

const BUFFER: usize = 64 * 1024;

type Peeked<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Reads `source` decompressed, whatever of gzip, zstd or neither it is.
///
/// # Errors
/// `Unsupported` for xz, bzip2 and lz4, by name; what `source` answers otherwise.
pub(crate) fn decompress<'a, R: Read + Send + 'a>(
    mut source: R,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut magic = Vec::with_capacity(6);
    source.by_ref().take(6).read_to_end(&mut magic)?;
    let compression = detect(&magic)?;
    let peeked: Peeked<R> = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(source));
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(peeked),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(peeked))),
        Compression::Zstd => Box::new(BufReader::with_capacity(BUFFER, ZstdReader::new(peeked))),
    };
    Ok((compression, reader))
}

/// The compression that `magic`, the first bytes of a stream, announces.
pub(crate) fn detect(magic: &[u8]) -> io::Result<Compression> {
    let unsupported = |name: &str| {
        let message = format!("compression `{name}` is not supported: expected gzip, zstd or none");
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    };
    match magic {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unsupported("xz"),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4"),
        _ => Ok(Compression::None),
    }
}

/// Decodes zstd frame after frame, as streams made in parallel or joined by `cat` have several.
struct ZstdReader<R: BufRead> {
    source: R,
    decoder: FrameDecoder,
    within_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(source: R) -> Self {
        ZstdReader { source, decoder: FrameDecoder::new(), within_frame: false }
    }

    /// Starts the next frame, skipping those that hold no data; false at the stream's end.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0u8; 4];
            self.source.read_exact(&mut magic)?;
            if !matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                self.decoder.reset(magic.chain(&mut self.source)).map_err(io::Error::other)?;
                return Ok(true);
            }
            let mut length = [0u8; 4];
            self.source.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within_frame {
                self.within_frame = self.next_frame()?;
                if !self.within_frame {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one_block = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one_block).map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.within_frame = !self.decoder.is_finished();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.1.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn joined_streams_read_as_one() {
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [zstd(b"one"), skippable, zstd(&[7; 300_000])].concat();
        assert_eq!(read(&frames).unwrap(), [&b"one"[..], &[7; 300_000]].concat());
    }

    #[test]
    fn truncated_streams_are_errors() {
        for stream in [gzip(&[1; 5000]), zstd(&[1; 5000])] {
            assert!(read(&stream[..stream.len() - 9]).is_err());
        }
    }

    #[test]
    fn other_compressions_are_refused_by_name() {
        let message = read(b"\xfd7zXZ\0....").unwrap_err().to_string();
        assert!(message.contains("`xz`"), "{message}");
    }
}
