//! What goes over the control channel of a guest, both ways: frames, each about one request.
//!
//! ```text
//! request: u32 | kind: u8 | length: u32 | payload        (big end first)
//! ```
//! The host numbers its requests; output of several may be mixed. A request is over with its `Ended` or `Refused`.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longer pieces of input and output are cut into several frames.
pub const PIECE_BYTES: usize = 64 << 10;
/// No frame is longer; the longest are requests with many words.
const PAYLOAD_BYTES_MAX: u32 = 4 << 20;
const HEADER_BYTES: usize = 9;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// To the guest: run this.
    Run(Run),
    /// To the guest: more for the program's standard input; an empty piece closes it.
    Input(Vec<u8>),
    /// From the guest: it is up. Belongs to request 0.
    Ready,
    /// From the guest: it could not come up, and why. Belongs to request 0.
    Failed(String),
    Output(Vec<u8>),
    ErrorOutput(Vec<u8>),
    /// From the guest: exit code, or 128 and the signal's number as a shell has it. No output comes after it.
    Ended(i32),
    /// From the guest: the program could not be started, and why.
    Refused(String),
}

/// A program to be run in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// In addition to those every program of the guest gets.
    pub environment: BTreeMap<String, String>,
}

impl Frame {
    fn encode(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Run(run) => (1, serde_json::to_vec(run)?),
            Self::Input(piece) => (2, piece.clone()),
            Self::Ready => (3, Vec::new()),
            Self::Failed(reason) => (4, reason.clone().into_bytes()),
            Self::Output(piece) => (5, piece.clone()),
            Self::ErrorOutput(piece) => (6, piece.clone()),
            Self::Ended(code) => (7, code.to_be_bytes().to_vec()),
            Self::Refused(reason) => (8, reason.clone().into_bytes()),
        })
    }

    fn decode(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        let text = |payload: Vec<u8>| String::from_utf8_lossy(&payload).into_owned();
        Ok(match kind {
            1 => Self::Run(serde_json::from_slice(&payload)?),
            2 => Self::Input(payload),
            3 => Self::Ready,
            4 => Self::Failed(text(payload)),
            5 => Self::Output(payload),
            6 => Self::ErrorOutput(payload),
            7 => {
                let bytes = payload.try_into().map_err(|_| invalid("expected an exit code of 4 bytes"))?;
                Self::Ended(i32::from_be_bytes(bytes))
            }
            8 => Self::Refused(text(payload)),
            _ => return Err(invalid("expected a frame of kind 1 to 8")),
        })
    }
}

/// Writes one frame at once.
///
/// # Errors
/// Those of the stream.
pub fn write(mut stream: impl Write, request: u32, frame: &Frame) -> io::Result<()> {
    let (kind, payload) = frame.encode()?;
    let length = u32::try_from(payload.len()).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX);
    let length = length.ok_or_else(|| invalid("expected a frame of at most 4 MiB"))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(request.to_be_bytes());
    bytes.push(kind);
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    stream.write_all(&bytes)
}

/// Reads one frame with the number of its request; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for what is no frame, `UnexpectedEof` when it is cut off, or those of the stream.
pub fn read(mut stream: impl Read) -> io::Result<Option<(u32, Frame)>> {
    let mut header = [0; HEADER_BYTES];
    // The end may come between two frames only.
    let first = loop {
        match stream.read(&mut header[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let [r0, r1, r2, r3, kind, l0, l1, l2, l3] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if length > PAYLOAD_BYTES_MAX {
        return Err(invalid("expected a frame of at most 4 MiB"));
    }
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    Ok(Some((u32::from_be_bytes([r0, r1, r2, r3]), Frame::decode(kind, payload)?)))
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let run = Run {
            words: vec!["/bin/sh".to_owned(), "-c".to_owned(), "echo \"ä\"\n".to_owned()],
            environment: [("A".to_owned(), "b=c".to_owned())].into(),
        };
        let frames = [
            (1, Frame::Run(run)),
            (1, Frame::Input(vec![0, 255])),
            (1, Frame::Input(Vec::new())),
            (0, Frame::Ready),
            (0, Frame::Failed("no".to_owned())),
            (u32::MAX, Frame::Output(b"out".to_vec())),
            (7, Frame::ErrorOutput(vec![1; PIECE_BYTES])),
            (7, Frame::Ended(137)),
            (8, Frame::Refused("not found".to_owned())),
        ];
        let mut bytes = Vec::new();
        for (request, frame) in &frames {
            write(&mut bytes, *request, frame).unwrap();
        }
        let mut stream = &bytes[..];
        for expected in frames {
            assert_eq!(read(&mut stream).unwrap(), Some(expected));
        }
        assert_eq!(read(&mut stream).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, expected) in [
            (&[0, 0, 0][..], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0, 1, 3, 0, 0, 0, 4, 1], io::ErrorKind::UnexpectedEof),
            (&[0, 0, 0, 1, 99, 0, 0, 0, 0], io::ErrorKind::InvalidData),
            (&[0, 0, 0, 1, 5, 255, 0, 0, 0], io::ErrorKind::InvalidData),
            (&[0, 0, 0, 1, 7, 0, 0, 0, 1, 1], io::ErrorKind::InvalidData),
        ] {
            assert_eq!(read(bytes).unwrap_err().kind(), expected, "{bytes:?}");
        }
    }
}
