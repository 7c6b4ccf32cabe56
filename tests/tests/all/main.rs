//! All tests that see more than one crate, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod admin;
mod architecture;
mod eager;
mod end_to_end;
mod goldens;
mod kernels;
mod oip;
mod python;
mod quic;
mod security;
mod sessions;
