//! A small netlink client: one blocking socket, messages built and read as nested attributes.
//!
//! The three families this crate speaks (rtnetlink, nf_tables, conntrack) share one wire shape, so one encoder serves
//! them all. Netlink answers a request before `sendmsg` returns, so a blocking socket costs no waiting; what must not
//! be blocked is kept off it by [`crate::Network`], whose own thread holds the sockets.
//!
//! Source: RFC 3549; Linux `include/uapi/linux/netlink.h`.

pub(crate) mod conntrack;
pub(crate) mod forwarding;
pub(crate) mod route;

use std::{io, os::fd::AsFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};

use crate::error::KernelError;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// The top two bits of an attribute type are flags (nested, network byte order).
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;
/// Room for one datagram of a dump: the kernel never sends more than 32 KiB at once.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Room for one transaction: some 100,000 map elements.
const SEND_BYTES: usize = 16 * 1024 * 1024;

/// Attribute of an extended acknowledgement that holds the kernel's own words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Attributes (type, length, value) in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    pub fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("no attribute of ours comes near 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A number in the machine's byte order, as rtnetlink wants it.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as netfilter wants it.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its closing NUL.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub fn nest(self, kind: u16, inner: &Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub fn append(&mut self, other: &Attributes) {
        self.0.extend_from_slice(&other.0);
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Reads the attributes in `bytes`; a malformed tail ends the iteration.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & ATTRIBUTE_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of type `kind`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

/// A string attribute without its closing NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

pub(crate) fn be_number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

/// One request: message type, flags, the family's fixed header, attributes.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub kind: u16,
    pub flags: u16,
    pub header: Vec<u8>,
    pub attributes: Attributes,
}

impl Message {
    pub fn new(kind: u16, header: &[u8], attributes: Attributes) -> Self {
        Self { kind, flags: 0, header: header.to_vec(), attributes }
    }

    pub fn flags(mut self, flags: i32) -> Self {
        self.flags |= flags as u16;
        self
    }

    fn write(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let length = HEADER_LEN + self.header.len() + self.attributes.as_bytes().len();
        out.extend_from_slice(&(length as u32).to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.header);
        out.extend_from_slice(self.attributes.as_bytes());
    }
}

/// What one received message says.
enum Reply<'a> {
    /// An acknowledgement, or the refusal of one request.
    Result {
        sequence: u32,
        result: Result<(), KernelError>,
    },
    Done,
    Data {
        sequence: u32,
        payload: &'a [u8],
    },
}

fn replies(datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = number(rest)? as usize;
        let message = rest.get(..length).filter(|_| length >= HEADER_LEN)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes(message[4..6].try_into().ok()?);
        let flags = u16::from_ne_bytes(message[6..8].try_into().ok()?);
        let sequence = number(&message[8..])?;
        let payload = &message[HEADER_LEN..];
        Some(match i32::from(kind) {
            libc::NLMSG_ERROR => {
                let errno =
                    payload.get(..4).map_or(libc::EPROTO, |b| -i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                let result = if errno == 0 { Ok(()) } else { Err(refusal(errno, flags, payload)) };
                Reply::Result { sequence, result }
            }
            libc::NLMSG_DONE => {
                // A dump that broke off reports its error in the closing message.
                match payload.get(..4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])) {
                    Some(code) if code < 0 => {
                        Reply::Result { sequence, result: Err(KernelError { errno: -code, reason: None }) }
                    }
                    _ => Reply::Done,
                }
            }
            _ => Reply::Data { sequence, payload },
        })
    })
}

/// The error in an `NLMSG_ERROR`, with the kernel's explanation where it gives one.
fn refusal(errno: i32, flags: u16, payload: &[u8]) -> KernelError {
    const CAPPED: u16 = 0x100;
    const HAS_ATTRIBUTES: u16 = 0x200;
    let mut reason = None;
    if flags & HAS_ATTRIBUTES != 0 {
        // `struct nlmsgerr` is the code and the header of the request; the request follows unless it was capped.
        let original = payload.get(4..).and_then(number).unwrap_or(0) as usize;
        let skip = if flags & CAPPED != 0 { 4 + HEADER_LEN } else { 4 + original.next_multiple_of(4) };
        reason = payload.get(skip..).and_then(|rest| find(rest, NLMSGERR_ATTR_MSG)).map(text);
    }
    KernelError { errno, reason }
}

/// A netlink socket in the network namespace of the thread that opened it, wherever it is used later.
pub(crate) struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// `protocol` is `libc::NETLINK_ROUTE`, `libc::NETLINK_NETFILTER` or `libc::NETLINK_GENERIC`.
    pub fn open(protocol: i32) -> Result<Self, KernelError> {
        let mut socket = RawSocket::new(protocol as isize)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // A whole transaction must fit in one datagram. Without CAP_NET_ADMIN the default stays, and a large one fails.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(socket.as_fd(), SEND_BYTES);
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn execute(&mut self, message: &Message) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        let mut out = Vec::with_capacity(256);
        message.write(&mut out, libc::NLM_F_ACK as u16, sequence);
        self.send(&out)?;
        loop {
            self.receive()?;
            for reply in replies(&self.buffer) {
                if let Reply::Result { sequence: of, result } = reply
                    && of == sequence
                {
                    return result;
                }
            }
        }
    }

    /// Asks for one object; the payload of the answer (fixed header and attributes).
    pub fn get(&mut self, message: &Message) -> Result<Vec<u8>, KernelError> {
        let sequence = self.next_sequence();
        let mut out = Vec::with_capacity(128);
        message.write(&mut out, 0, sequence);
        self.send(&out)?;
        loop {
            self.receive()?;
            for reply in replies(&self.buffer) {
                match reply {
                    Reply::Data { sequence: of, payload } if of == sequence => return Ok(payload.to_vec()),
                    Reply::Result { sequence: of, result: Err(error) } if of == sequence => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for all objects of a kind; `each` sees every payload in the kernel's order.
    pub fn dump(&mut self, message: &Message, mut each: impl FnMut(&[u8])) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        let mut out = Vec::with_capacity(128);
        message.write(&mut out, libc::NLM_F_DUMP as u16, sequence);
        self.send(&out)?;
        loop {
            self.receive()?;
            for reply in replies(&self.buffer) {
                match reply {
                    Reply::Data { sequence: of, payload } if of == sequence => each(payload),
                    Reply::Result { sequence: of, result } if of == sequence => return result,
                    Reply::Done => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Sends `messages` between `begin` and `end` in one datagram, which the kernel applies wholly or not at all.
    ///
    /// Only the last message asks for an acknowledgement: answers come in the order of the messages after all were
    /// looked at, so its answer closes the list of refusals, and 10,000 elements do not cause 10,000 answers.
    ///
    /// # Errors
    /// The first refusal and the position in `messages` of what it refused (`None`: the batch as a whole).
    pub fn transaction(
        &mut self,
        begin: &Message,
        messages: &[Message],
        end: &Message,
    ) -> Result<(), (Option<usize>, KernelError)> {
        let first = self.sequence.wrapping_add(2);
        let mut out = Vec::with_capacity(4096);
        let begin_sequence = self.next_sequence();
        begin.write(&mut out, 0, begin_sequence);
        for (position, message) in messages.iter().enumerate() {
            let ack = if position + 1 == messages.len() { libc::NLM_F_ACK as u16 } else { 0 };
            let sequence = self.next_sequence();
            message.write(&mut out, ack, sequence);
        }
        let last = self.sequence;
        let end_sequence = self.next_sequence();
        end.write(&mut out, 0, end_sequence);
        self.send(&out).map_err(|error| (None, error))?;
        let mut failed = None;
        loop {
            self.receive().map_err(|error| (None, error))?;
            for reply in replies(&self.buffer) {
                let Reply::Result { sequence, result } = reply else { continue };
                if (sequence == begin_sequence || sequence == end_sequence)
                    && let Err(error) = result
                {
                    return Err((None, error));
                }
                if sequence < first || sequence > last {
                    continue;
                }
                if let Err(error) = result {
                    failed.get_or_insert((Some((sequence - first) as usize), error));
                }
                if sequence == last {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), KernelError> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero).into()) }
    }

    fn receive(&mut self) -> Result<(), KernelError> {
        self.buffer.clear();
        loop {
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip() {
        let inner = Attributes::new().text(1, "eth0").bytes(2, &[7]);
        let all = Attributes::new().u32(5, 77).nest(6, &inner).be32(7, 0x0102_0304);
        let read: Vec<_> = attributes(all.as_bytes()).collect();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].0, number(read[0].1)), (5, Some(77)));
        assert_eq!((read[2].0, read[2].1), (7, &[1, 2, 3, 4][..]));
        assert_eq!(find(read[1].1, 1).map(text).as_deref(), Some("eth0"));
        assert_eq!(find(read[1].1, 2), Some(&[7][..]));
    }

    #[test]
    fn a_malformed_tail_ends_the_list() {
        for bytes in [&[][..], &[9], &[3, 0, 1, 0], &[200, 0, 1, 0, 1], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn an_unknown_link_is_refused_by_number() {
        let mut socket = Socket::open(libc::NETLINK_ROUTE).expect("a route socket needs no privilege");
        let error = route::link_by_name(&mut socket, "rsw-absent").map(|link| link.is_some());
        assert_eq!(error, Ok(false));
    }
}
