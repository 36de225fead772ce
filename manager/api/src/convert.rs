//! Conversion between wire messages and `rswarm-types`.
