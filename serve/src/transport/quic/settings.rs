//! What the configuration means to quinn and rustls.

use std::{sync::Arc, time::Duration};

use aerie_proto::{ALPN, KEEP_ALIVE};
use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    ServerConfig, TransportConfig, ValidationTokenConfig, VarInt, crypto::rustls::QuicServerConfig,
};

use ring::hmac;

use super::{
    BindError, Config, FRAME_WINDOW,
    tickets::{Tickets, UsedTokens},
};
use crate::{service::Service, tls::Identity};

/// Bytes of a handshake's own packets that may come before its connection is accepted.
const HANDSHAKE_BYTES: u32 = 16 << 10;
/// Proofs of its address that a client gets for later connections.
const TOKENS_SENT: u32 = 2;

/// Identifiers of connections, which say nothing about them.
struct RandomIds;

/// Has a server tell clients of connections that it has lost, by being killed say; they would wait
/// for their idle timeout otherwise (RFC 9000 §10.3).
pub(super) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &identity.secret(b"quic stateless reset"));
    let mut endpoint = EndpointConfig::new(Arc::new(key));
    // quinn's own are such that a restarted server takes them for noise.
    endpoint.cid_generator(|| Box::new(RandomIds));
    endpoint
}

/// All that quinn is told about connections.
pub(super) fn server_config(
    config: &Config,
    identity: &Identity,
    service: &Service,
) -> Result<ServerConfig, BindError> {
    let transport = transport_config(config)?;
    let lifetime = Duration::from_secs(config.ticket_s_max.into());
    let tickets_max = config.tickets_max as usize;
    let (clock, metrics) = (service.parts().clock, service.metrics().quic.clone());
    let mut tls = identity.server_config(ALPN)?;
    tls.session_storage = Arc::new(Tickets::new(tickets_max, lifetime, clock, metrics));
    // QUIC's windows are what bounds it; RFC 9001 §4.6.1 has but this value and zero.
    tls.max_early_data_size = u32::MAX;

    let mut tokens = ValidationTokenConfig::default();
    tokens.lifetime(lifetime).log(Arc::new(UsedTokens::new(tickets_max))).sent(TOKENS_SENT);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let incoming_bytes_max = u64::from(HANDSHAKE_BYTES + config.early_bytes_max);
    server
        .transport_config(Arc::new(transport))
        .validation_token_config(tokens)
        .migration(true)
        // Those that wait for the door to look at them; it looks without waiting for anything.
        .max_incoming(config.connections_max as usize)
        .incoming_buffer_size(incoming_bytes_max)
        .incoming_buffer_size_total(incoming_bytes_max * u64::from(config.handshakes_max));
    Ok(server)
}

/// Fits quinn to what flows here: frames of some tens of bytes, each awaited by a reader.
pub(super) fn transport_config(config: &Config) -> Result<TransportConfig, BindError> {
    let millis = |ms: u32| Duration::from_millis(ms.into());
    if config.handshakes_max == 0 {
        let problem = "lets nobody in";
        return Err(BindError::Config { field: "handshakes_max", found: 0, problem });
    }
    if millis(config.idle_ms_max) <= KEEP_ALIVE {
        let problem = "cuts off clients that wait, who say so every 10 s";
        return Err(BindError::Config { field: "idle_ms_max", found: config.idle_ms_max, problem });
    }
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(millis(config.ack_delay_ms_max)));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(config.streams_max.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(config.idle_ms_max))))
        .initial_rtt(millis(config.initial_rtt_ms))
        .ack_frequency_config(Some(acks))
        // One frame of any size is on its way in without waiting.
        .stream_receive_window(FRAME_WINDOW.into())
        // For early data; it grows to `RECEIVE_WINDOW` with the end of the handshake.
        .receive_window(config.early_bytes_max.into())
        // What a slow reader may leave here before its generation sits out.
        .send_window(FRAME_WINDOW.into());
    Ok(transport)
}

impl RandomIds {
    const BYTES: usize = 8;
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; Self::BYTES]>())
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
