//! A cluster in memory: its root, and credentials of nodes made as the managers make them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use rswarm_identity::{Claims, Credentials, IssuedCertificate, NodeKey, RootCa};
use rswarm_types::{ClusterId, NodeId, Role, Timestamp, Version};

pub const HOUR: Duration = Duration::from_secs(3600);
pub const MINUTE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub ca: RootCa,
    pub id: ClusterId,
}

impl Cluster {
    pub fn new(id: u8) -> Self {
        Self { ca: RootCa::generate(Timestamp::now()).unwrap(), id: ClusterId::from_bytes([id; 16]) }
    }

    pub fn claims(&self, node: u8, role: Role) -> Claims {
        Claims { node: node_id(node), role, cluster: self.id }
    }

    pub fn issue(&self, key: &NodeKey, claims: &Claims, now: Timestamp) -> IssuedCertificate {
        self.ca.issue(&key.csr_pem().unwrap(), claims, HOUR, now, Version(0), &[]).unwrap()
    }

    /// Credentials issued at `now`, valid for an hour.
    pub fn node_at(&self, node: u8, role: Role, now: Timestamp) -> Credentials {
        let key = NodeKey::generate().unwrap();
        let issued = self.issue(&key, &self.claims(node, role), now);
        Credentials::new(self.ca.cert_pem(), &issued.pem, key).unwrap()
    }

    pub fn node(&self, node: u8, role: Role) -> Credentials {
        self.node_at(node, role, Timestamp::now())
    }
}

pub fn node_id(node: u8) -> NodeId {
    NodeId::from_bytes([node; 16])
}
