//! What the tests share: reference readings of models and the problems that every implementation of
//! an operator has to solve.

pub mod conformance;
pub mod eager;
pub mod random;
