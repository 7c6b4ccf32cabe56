//! What the tests share: a server of their own, reference readings of models, answers of Google's
//! code, and the problems that every implementation of an operator has to solve.

pub mod conformance;
pub mod eager;
pub mod exact;
pub mod golden;
pub mod random;
pub mod readings;
pub mod server;
pub mod turn;
