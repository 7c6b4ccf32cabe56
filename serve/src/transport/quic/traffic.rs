//! What a connection's own statistics add to the metrics of all connections.

use std::{net::SocketAddr, time::Duration};

use quinn::{Connection, ConnectionStats};

use crate::telemetry::metrics::QuicMetrics;

/// How often a connection that stays is looked at, besides at its end.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// What of a connection has been counted by now.
#[derive(Debug)]
pub(super) struct Traffic {
    counted: ConnectionStats,
    remote: SocketAddr,
}

impl Traffic {
    pub(super) fn new(connection: &Connection) -> Self {
        Self { counted: ConnectionStats::default(), remote: connection.remote_address() }
    }

    /// Counts what has happened since the last time.
    pub(super) fn sample(&mut self, connection: &Connection, metrics: &QuicMetrics) {
        let now = connection.stats();
        let counted = std::mem::replace(&mut self.counted, now);
        let (path, before) = (now.path, counted.path);
        // What was not acknowledged since tells nothing new, and at first nothing but a guess.
        if counted.frame_rx.acks < now.frame_rx.acks {
            metrics.rtt.observe(path.rtt.as_secs_f64());
        }
        self.follow(connection, metrics);
        for (counter, now, before) in [
            (&metrics.sent_packets, path.sent_packets, before.sent_packets),
            (&metrics.lost_packets, path.lost_packets, before.lost_packets),
            (&metrics.congestion_events, path.congestion_events, before.congestion_events),
            (&metrics.black_holes, path.black_holes_detected, before.black_holes_detected),
            (&metrics.sent_bytes, now.udp_tx.bytes, counted.udp_tx.bytes),
            (&metrics.received_bytes, now.udp_rx.bytes, counted.udp_rx.bytes),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
    }

    /// Counts a change of the client's address.
    pub(super) fn follow(&mut self, connection: &Connection, metrics: &QuicMetrics) {
        let remote = connection.remote_address();
        if self.remote != remote {
            metrics.migrations.inc();
            self.remote = remote;
        }
    }
}
