//! What the server tells of itself: metrics, and the HTTP endpoint that shows them.

pub mod http;
pub mod metrics;
