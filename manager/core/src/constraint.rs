//! Placement constraints: `key==value` and `key!=value` over what is known of a node. Source: swarm-parity 3.6.
//!
//! Unlike in Swarm an unknown key is refused when it is written, as it could never match.

use rswarm_types::{Node, Role};

/// Keys that a constraint may name; those that end in a dot take a label's name.
pub const KEYS: [&str; 8] = [
    "node.id",
    "node.hostname",
    "node.ip",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
    "node.labels.",
    "engine.labels.",
];

/// Why a text is no constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("invalid constraint `{0}`: expected `key==value` or `key!=value`")]
    Operator(String),
    #[error("invalid constraint `{constraint}`: unknown key `{key}`, expected one of {}", known_keys())]
    Key { constraint: String, key: String },
    #[error(
        "invalid constraint `{constraint}`: value `{value}` is empty or holds a character other than letters, \
             digits, blanks and `:-_.*()?+[]\\^$|/`"
    )]
    Value { constraint: String, value: String },
    #[error(
        "invalid constraint `{constraint}`: expected an address or a subnet like `10.0.0.0/8`, found `{value}`"
    )]
    Address { constraint: String, value: String },
}

fn known_keys() -> String {
    KEYS.map(|key| if key.ends_with('.') { format!("`{key}<name>`") } else { format!("`{key}`") }).join(", ")
}

/// A constraint, taken apart once per scheduling group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: Key,
    /// Lower case; values compare without regard to case.
    value: String,
    /// Whether the operator is `==`.
    equal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Arch,
    NodeLabel(String),
    EngineLabel(String),
}

impl std::str::FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let (at, equal) = match (text.find("=="), text.find("!=")) {
            (Some(eq), Some(ne)) => (eq.min(ne), eq < ne),
            (Some(eq), None) => (eq, true),
            (None, Some(ne)) => (ne, false),
            (None, None) => return Err(ConstraintError::Operator(text.to_owned())),
        };
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        let constraint = text.to_owned();
        let Some(parsed) = parse_key(key) else {
            return Err(ConstraintError::Key { constraint, key: key.to_owned() });
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || " :-_.*()?+[]\\^$|/".contains(c);
        if value.is_empty() || !value.chars().all(allowed) {
            return Err(ConstraintError::Value { constraint, value: value.to_owned() });
        }
        if parsed == Key::Ip && Cidr::parse(value).is_none() {
            return Err(ConstraintError::Address { constraint, value: value.to_owned() });
        }
        Ok(Self { key: parsed, value: value.to_lowercase(), equal })
    }
}

fn parse_key(key: &str) -> Option<Key> {
    let lower = key.to_ascii_lowercase();
    let label = |prefix: &str| {
        // Key names are case-insensitive, label names are not.
        let name = lower.starts_with(prefix).then(|| &key[prefix.len()..])?;
        let valid = !name.is_empty()
            && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        valid.then(|| name.to_owned())
    };
    match lower.as_str() {
        "node.id" => Some(Key::Id),
        "node.hostname" => Some(Key::Hostname),
        "node.ip" => Some(Key::Ip),
        "node.role" => Some(Key::Role),
        "node.platform.os" => Some(Key::Os),
        "node.platform.arch" => Some(Key::Arch),
        _ => label("node.labels.")
            .map(Key::NodeLabel)
            .or_else(|| label("engine.labels.").map(Key::EngineLabel)),
    }
}

/// Taken apart; all of them must hold.
pub fn parse_all(constraints: &[String]) -> Result<Vec<Constraint>, ConstraintError> {
    constraints.iter().map(|text| text.parse()).collect()
}

/// Whether a node meets all constraints. A missing label or description counts as the empty text.
pub fn all_match(constraints: &[Constraint], node: &Node) -> bool {
    constraints.iter().all(|constraint| constraint.matches(node))
}

impl Constraint {
    /// Whether a node meets this constraint.
    pub fn matches(&self, node: &Node) -> bool {
        let is = |text: &str| text.to_lowercase() == self.value;
        let description = node.description.as_ref();
        let holds = match &self.key {
            Key::Id => is(&node.id.to_string()),
            Key::Hostname => is(description.map_or("", |d| &d.hostname)),
            Key::Ip => match (Cidr::parse(&self.value), node.status.addr) {
                (Some(cidr), Some(address)) => cidr.contains(address),
                _ => false,
            },
            Key::Role => is(match node.role {
                Role::Manager => "manager",
                Role::Worker => "worker",
            }),
            Key::Os => is(description.map_or("", |d| &d.platform.os)),
            Key::Arch => is(description.map_or("", |d| &d.platform.architecture)),
            Key::NodeLabel(name) => is(node.spec.labels.get(name).map_or("", String::as_str)),
            Key::EngineLabel(name) => {
                is(description.and_then(|d| d.engine_labels.get(name)).map_or("", String::as_str))
            }
        };
        holds == self.equal
    }
}

/// An address with the number of its bits that count.
struct Cidr(std::net::IpAddr, u32);

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse().ok()?, Some(bits.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if matches!(address, std::net::IpAddr::V4(_)) { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self(address, bits))
    }

    fn contains(&self, other: std::net::IpAddr) -> bool {
        let number = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            std::net::IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((a, a_v4), (b, b_v4)) = (number(self.0), number(other));
        let differing = if self.1 == 0 { 0 } else { (a ^ b) >> (128 - self.1) };
        a_v4 == b_v4 && differing == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_types::{NodeDescription, NodeId, NodeSpec, NodeStatus, Version};

    fn node() -> Node {
        let mut node = Node {
            id: NodeId::from_bytes([7; 16]),
            meta: Default::default(),
            spec: NodeSpec::default(),
            role: Role::Manager,
            description: Some(NodeDescription { hostname: "Alpha".into(), ..Default::default() }),
            status: NodeStatus { addr: Some("10.1.2.3".parse().unwrap()), ..Default::default() },
            manager: None,
            role_since: Version::default(),
            number: 0,
        };
        node.spec.labels.insert("Zone".into(), "eu-1".into());
        node
    }

    #[test]
    fn constraints_match_as_in_swarm() {
        for (text, expected) in [
            ("node.hostname==alpha", true),
            ("node.hostname != ALPHA", false),
            ("NODE.ROLE==Manager", true),
            ("node.labels.Zone==EU-1", true),
            ("node.labels.zone==eu-1", false),
            ("node.labels.missing!=x", true),
            ("engine.labels.disk==ssd", false),
            ("node.ip==10.1.0.0/16", true),
            ("node.ip!=10.1.2.3", false),
            ("node.ip==::/0", false),
        ] {
            assert_eq!(text.parse::<Constraint>().unwrap().matches(&node()), expected, "{text}");
        }
    }

    #[test]
    fn what_could_never_match_is_refused() {
        for (text, part) in [
            ("node.role=manager", "expected `key==value`"),
            ("node.rolle==manager", "unknown key `node.rolle`, expected one of `node.id`"),
            ("node.labels.==x", "unknown key"),
            ("node.id==", "is empty"),
            ("node.hostname==a&b", "character"),
            ("node.ip==10.0.0.0/33", "expected an address"),
        ] {
            let message = text.parse::<Constraint>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
