//! What the tests share: a server of their own, reference readings of models and the problems that every implementation of
//! an operator has to solve.

pub mod conformance;
pub mod eager;
pub mod random;
pub mod server;
pub mod turn;
