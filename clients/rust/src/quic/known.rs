//! Servers that this process has talked to: how to talk to them, and what they gave for next time.
//!
//! A ticket to resume with and a token that proves an address are kept by the configuration that got
//! them, so that whoever is trusted in another way never profits from them. They are in memory alone.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aerie_proto::ALPN;
use quinn::{
    AckFrequencyConfig, ClientConfig, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};

use super::{FRAME_WINDOW, RECEIVE_WINDOW};
use crate::{ClientCertificate, Trust, TrustError};

/// Servers remembered; beyond it the one is forgotten that was left alone for longest.
const SERVERS_MAX: usize = 64;
/// A connection over which nothing has come for this long is given up.
const IDLE_MAX: VarInt = VarInt::from_u32(30_000);
/// Assumed before the first measurement, so that a lost first flight is repeated soon.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How long the server may hold an acknowledgement back, and so a lost request go unnoticed.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);

/// In the order in which they were last asked for.
static SERVERS: Mutex<Vec<(Server, ClientConfig)>> = Mutex::new(Vec::new());

/// Whom a configuration is for.
#[derive(Debug, Eq, PartialEq)]
struct Server {
    authority: String,
    trust: Trust,
    certificate: Option<ClientCertificate>,
    /// When the file that `trust` names was changed last.
    modified: Option<SystemTime>,
}

/// How to talk to the server at `authority`: as before, if it was talked to before.
pub(super) fn config(
    authority: &str,
    trust: &Trust,
    certificate: Option<&ClientCertificate>,
) -> Result<ClientConfig, TrustError> {
    let modified = match trust {
        Trust::Certificate(path) => fs::metadata(path).and_then(|it| it.modified()).ok(),
        _ => None,
    };
    let server = Server {
        authority: authority.to_owned(),
        trust: trust.clone(),
        certificate: certificate.cloned(),
        modified,
    };
    let fresh = client_config(trust, certificate)?;
    // What it guards is whole between any two calls.
    let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = servers.iter().position(|(known, _)| *known == server);
    let config = known.map_or(fresh, |at| servers.remove(at).1);
    if SERVERS_MAX <= servers.len() {
        servers.remove(0);
    }
    servers.push((server, config.clone()));
    Ok(config)
}

fn client_config(
    trust: &Trust,
    certificate: Option<&ClientCertificate>,
) -> Result<ClientConfig, TrustError> {
    let mut tls = trust.client_config(ALPN, certificate)?;
    tls.enable_early_data = true;
    let tls = QuicClientConfig::try_from(tls).expect("ring has the suite that QUIC begins with");
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(ACK_DELAY_MAX));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_MAX.into()))
        .initial_rtt(INITIAL_RTT)
        .ack_frequency_config(Some(acks))
        .stream_receive_window(FRAME_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into());
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
