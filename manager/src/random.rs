//! Randomness: ids and names are minted by the shell, never by the core.

/// `N` bytes of the kernel's random source.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel's random source works once the machine has booted");
    bytes
}

/// A random number.
pub(crate) fn number() -> u64 {
    u64::from_be_bytes(bytes())
}

/// A random secret or identifier as text: 128 bits, base 36, 25 characters.
pub(crate) fn text() -> String {
    rswarm_types::id::to_base36(u128::from_be_bytes(bytes()))
}
