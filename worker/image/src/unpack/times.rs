//! Times of directories, to be set when everything within is in place, as every creation there changes them.
//!
//! They wait in a nameless file: a layer may have more directories than memory should be spent on.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
};

/// A time: seconds since the epoch, nanoseconds.
pub type Time = (i64, u32);

pub struct Times(BufWriter<File>);

impl Times {
    /// `file` is empty and nobody else's.
    pub fn new(file: File) -> Times {
        Times(BufWriter::new(file))
    }

    /// Notes the time of a directory; of several the last one counts.
    pub fn note(&mut self, path: &[u8], (seconds, nanos): Time) -> io::Result<()> {
        let length = u32::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(path)?;
        self.0.write_all(&seconds.to_le_bytes())?;
        self.0.write_all(&nanos.to_le_bytes())
    }

    /// Gives everything that was noted to `set`, in order.
    pub fn replay(self, mut set: impl FnMut(&[u8], Time) -> io::Result<()>) -> io::Result<()> {
        let mut file = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let mut file = BufReader::new(file);
        let mut path = Vec::new();
        loop {
            let mut length = [0; 4];
            match file.read_exact(&mut length) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            path.resize(u32::from_le_bytes(length) as usize, 0);
            file.read_exact(&mut path)?;
            let (mut seconds, mut nanos) = ([0; 8], [0; 4]);
            file.read_exact(&mut seconds)?;
            file.read_exact(&mut nanos)?;
            set(&path, (i64::from_le_bytes(seconds), u32::from_le_bytes(nanos)))?;
        }
    }
}
