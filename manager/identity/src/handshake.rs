//! Turns what is left of a failed handshake, deep in some transport's error, into words a user can act on.

use std::error::Error;
use std::io;

use rustls::AlertDescription;

use crate::verify::VerifyError;

/// Why two nodes did not come to talk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("the other side's certificate was refused")]
    Refused(#[source] VerifyError),
    #[error(
        "the other side does not trust this node's certificate: it belongs to another cluster, or this node's root was \
         replaced while it was away"
    )]
    PeerDoesNotTrustUs,
    #[error(
        "the other side says that this node's certificate is not valid at this time: it has expired, or one of the two \
         clocks is wrong"
    )]
    PeerSaysExpired,
    #[error("the other side ended the handshake: {0}")]
    PeerRefused(String),
    #[error("the other side does not speak rswarm's TLS: is this the address and port of an rswarm manager?")]
    NotRswarm,
}

/// Looks for a TLS failure in `error` and its causes; `None` if there is none.
///
/// A server's refusal of a client certificate arrives after the client believes itself connected (RFC 8446, 4.4.2.4):
/// run this over errors of first calls as well as over those of connecting. When the refusal is overtaken by the
/// closing of the connection, only a broken pipe is left, which this cannot know as a TLS failure.
pub fn diagnose(error: &(dyn Error + 'static)) -> Option<HandshakeError> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An io::Error hides the error it was made from: its `source` is that one's source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(inner) = wrapped {
            let inner: &(dyn Error + 'static) = inner;
            if let Some(found) = diagnose(inner) {
                return Some(found);
            }
        }
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return from_rustls(found);
        }
        next = error.source();
    }
    None
}

fn from_rustls(error: &rustls::Error) -> Option<HandshakeError> {
    use AlertDescription as Alert;
    Some(match error {
        rustls::Error::InvalidCertificate(reason) => {
            HandshakeError::Refused(VerifyError::from_rustls(reason))
        }
        rustls::Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            HandshakeError::PeerDoesNotTrustUs
        }
        rustls::Error::AlertReceived(Alert::CertificateExpired) => HandshakeError::PeerSaysExpired,
        rustls::Error::AlertReceived(Alert::ProtocolVersion | Alert::NoApplicationProtocol)
        | rustls::Error::InvalidMessage(_)
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::NoApplicationProtocol => HandshakeError::NotRswarm,
        rustls::Error::AlertReceived(alert) => HandshakeError::PeerRefused(format!("{alert:?}")),
        _ => return None,
    })
}
