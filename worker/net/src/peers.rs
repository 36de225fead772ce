//! Whether other nodes are reached by the data path: their kernels are asked, through the tunnel of the ingress network.
//!
//! Each node has an address of its own on that network's bridge ([`next_hop`]). A datagram to a port there that nobody has
//! is refused by the kernel, whether a daemon runs or not; one that is lost on the way is not. It costs two small packets,
//! and nobody waits: what came back is looked at when the next are sent.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddrV4, UdpSocket},
};

use crate::{
    error::NetError,
    overlay::{Overlay, next_hop},
};

/// Never anybody's. Source: IANA, Service Name and Transport Protocol Port Number Registry (`tcpmux`).
const PORT: u16 = 1;
/// Nodes asked at once: each takes a socket until the next time.
const ASKED_MAX: usize = 64;

/// Questions that are on their way.
#[derive(Debug, Default)]
pub struct PeerQuestions {
    sockets: Vec<(u16, UdpSocket)>,
}

/// Who answered, and who did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerAnswers {
    /// Numbers of nodes.
    pub answered: BTreeSet<u16>,
    pub silent: BTreeSet<u16>,
}

impl PeerQuestions {
    /// Asks the nodes after the last one asked in `former`, around once. Called in the namespace of the overlays.
    pub(crate) fn ask(overlay: &Overlay, former: Option<u16>) -> Result<Self, NetError> {
        let failed =
            |source: std::io::Error| NetError::kernel("ask other nodes by the data path", source.into());
        if overlay.ingress().is_none() {
            return Ok(Self::default());
        }
        let after = former.unwrap_or(0);
        let later = overlay.peers.keys().filter(|number| **number > after);
        let rest = overlay.peers.keys().filter(|number| **number <= after);
        let mut sockets = Vec::new();
        for number in later.chain(rest).take(ASKED_MAX) {
            let socket = UdpSocket::bind((next_hop(overlay.node), 0)).map_err(failed)?;
            socket.set_nonblocking(true).map_err(failed)?;
            socket.connect(SocketAddrV4::new(next_hop(*number), PORT)).map_err(failed)?;
            // Should it not get away, there will be no answer.
            let _ = socket.send(&[0]);
            sockets.push((*number, socket));
        }
        Ok(Self { sockets })
    }

    /// The last node asked.
    pub(crate) fn last(&self) -> Option<u16> {
        self.sockets.last().map(|(number, _)| *number)
    }

    /// What has come back by now.
    pub fn answers(&self) -> PeerAnswers {
        let mut answers = PeerAnswers::default();
        for (number, socket) in &self.sockets {
            let refused =
                socket.recv(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            if refused { &mut answers.answered } else { &mut answers.silent }.insert(*number);
        }
        answers
    }
}
