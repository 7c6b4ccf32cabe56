//! Talks to an Aerie server: one API, over gRPC or QUIC.
//!
//! ```no_run
//! use aerie_client::{Client, Event, Trust, v1};
//! use tokio_stream::StreamExt as _;
//!
//! # async fn run() -> Result<(), aerie_client::Error> {
//! let client = Client::connect("quic://127.0.0.1:7447", &Trust::Insecure).await?;
//! let prompt = v1::start::Prompt::Text("Once upon a time".to_owned());
//! let start = v1::Start { prompt: Some(prompt), max_tokens: 64, ..v1::Start::default() };
//! let mut generation = client.generate(start).await?;
//! while let Some(event) = generation.next().await {
//!     if let Event::Delta(delta) = event? {
//!         print!("{}", delta.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod admin;
mod classify;
mod client;
mod credentials;
mod error;
mod grpc;
mod quic;
mod retry;
mod stitch;
mod tls;

pub use admin::Admin;
pub use aerie_proto::v1;
pub use classify::Class;
pub use client::{Client, Event, Generation, random_id};
pub use credentials::{ClientCertificate, Credentials};
pub use error::{Code, Error};
pub use retry::Retry;
pub use tls::{Trust, TrustError};
