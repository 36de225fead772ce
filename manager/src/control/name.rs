//! Names for services whose user gave none: an adjective and the surname of someone science owes something.

/// Plain, kind, and short enough to type.
const ADJECTIVES: [&str; 48] = [
    "able", "amber", "apt", "blithe", "bold", "brave", "brisk", "calm", "candid", "clever", "crisp",
    "curious", "deft", "eager", "earnest", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden",
    "hale", "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid", "mellow", "merry", "mild", "neat",
    "nimble", "noble", "patient", "plucky", "proud", "quiet", "quick", "ready", "serene", "smart", "steady",
    "sunny", "warm", "witty",
];

const SURNAMES: [&str; 48] = [
    "abel",
    "ampere",
    "babbage",
    "banach",
    "bohr",
    "boole",
    "carson",
    "cauchy",
    "chandra",
    "curie",
    "darwin",
    "dijkstra",
    "dirac",
    "einstein",
    "erdos",
    "euler",
    "faraday",
    "fermat",
    "fermi",
    "franklin",
    "galois",
    "gauss",
    "germain",
    "goodall",
    "hamilton",
    "heisenberg",
    "hilbert",
    "hopper",
    "hypatia",
    "jemison",
    "joule",
    "kepler",
    "kowalevski",
    "lamarr",
    "liskov",
    "lovelace",
    "maxwell",
    "meitner",
    "mendel",
    "newton",
    "noether",
    "pascal",
    "ramanujan",
    "shannon",
    "somerville",
    "tesla",
    "turing",
    "volta",
];

/// The name that `random` stands for.
pub(crate) fn from_random(random: u64) -> String {
    let (adjective, surname) = (random % ADJECTIVES.len() as u64, random / ADJECTIVES.len() as u64);
    // Both indexes are below the length of their list.
    format!("{}_{}", ADJECTIVES[adjective as usize], SURNAMES[(surname % SURNAMES.len() as u64) as usize])
}

/// The same with a number, for a cluster in which the plain name is taken.
pub(crate) fn with_number(name: &str, number: u32) -> String {
    format!("{name}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_a_valid_name() {
        let mut seen = std::collections::BTreeSet::new();
        for random in 0..(48 * 48) {
            let name = from_random(random);
            assert!(name.len() < 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            seen.insert(name);
        }
        assert_eq!(seen.len(), 48 * 48);
        assert!(!from_random(u64::MAX).is_empty());
    }
}
