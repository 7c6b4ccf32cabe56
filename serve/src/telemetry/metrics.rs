//! Every metric of the server, registered once; the only file that knows `prometheus`.
//!
//! Labels come from closed enums, from the configuration and from the tokens file, so the number of series is fixed when
//! the server starts.

#[cfg(test)]
mod tests;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, core::Collector, exponential_buckets,
};

use crate::{admission::RejectKind, pipe::FinishReason, prefixes::Miss};

/// The metrics of a server. What happens in a step is in [`WorkerMetrics`].
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Generations that were accepted, by model.
    pub generations_accepted: IntCounterVec,
    /// Requests that were refused, by [`RejectKind`].
    pub requests_rejected: IntCounterVec,
    /// Calls of a transport that ended, by gRPC's code.
    pub calls: IntCounterVec,
    pub calls_in_flight: IntGaugeVec,
    pub call_duration: HistogramVec,
    /// Places of the Open Inference Protocol that are taken.
    pub oip_calls: IntGauge,
    /// Classifications in flight, those included whose pictures are decoded.
    pub classifications: IntGauge,
    pub quic: QuicMetrics,
    workers: WorkerFamilies,
    tenant_sessions: IntGaugeVec,
    tenant_generations: IntGaugeVec,
}

/// What QUIC connections do, all of them together.
#[derive(Clone, Debug)]
pub struct QuicMetrics {
    pub connections: IntGauge,
    /// Connections that were tried, by what became of them.
    pub handshakes: IntCounterVec,
    /// Tickets that clients showed in order to resume, by what they were worth.
    pub tickets: IntCounterVec,
    /// Calls that came before their handshake was complete, by when they were run.
    pub early_calls: IntCounterVec,
    pub rtt: Histogram,
    pub sent_packets: IntCounter,
    pub lost_packets: IntCounter,
    pub sent_bytes: IntCounter,
    pub received_bytes: IntCounter,
    pub congestion_events: IntCounter,
    pub black_holes: IntCounter,
    pub migrations: IntCounter,
}

/// The series of one tenant, looked up once.
#[derive(Clone, Debug)]
pub struct TenantMetrics {
    pub sessions: IntGauge,
    pub generations: IntGauge,
}

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Labels of what belongs to one worker.
const WORKER: &[&str] = &["model", "device"];

/// A protocol that clients speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Api {
    Grpc,
    Quic,
    /// The Open Inference Protocol over gRPC.
    Oip,
    /// And over HTTP.
    Rest,
}

/// Where a session's state was when its generation began.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    New,
    Resident,
    Parked,
}

/// The series of one worker, looked up once.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    pub model_load: Histogram,
    pub step_duration: Histogram,
    /// What a step costs outside the device: scheduling, sampling, text.
    pub step_overhead: Histogram,
    pub step_sequences: Histogram,
    pub step_tokens: Histogram,
    pub queue_wait: Histogram,
    pub inter_token_latency: Histogram,
    pub prompt_tokens: IntCounter,
    pub generated_tokens: IntCounter,
    pub sequences_waiting: IntGauge,
    pub sequences_running: IntGauge,
    pub sequences_paused: IntGauge,
    pub sessions_active: IntGauge,
    pub sessions_resident: IntGauge,
    pub sessions_parked: IntGauge,
    pub lanes_used: IntGauge,
    pub lanes_free: IntGauge,
    pub session_park: Histogram,
    pub session_park_failures: IntCounter,
    pub session_resume: Histogram,
    /// From leaving to being gone on with elsewhere.
    pub session_move: Histogram,
    pub sessions_evicted: IntCounter,
    pub sessions_expired: IntCounter,
    /// Tokens of sessions whose state was there when a generation began, and those whose was not.
    pub resumed_tokens: IntCounter,
    pub recomputed_tokens: IntCounter,
    /// Requests that were answered before.
    pub requests_repeated: IntCounter,
    /// Tokens of prompts whose state was there, as others had begun alike.
    pub prefix_tokens: IntCounter,
    pub prefix_bytes: IntGauge,
    prefix_hits: IntCounter,
    prefix_misses: [IntCounter; 4],
    pub device_errors: IntCounter,
    time_to_first_token: [Histogram; 3],
    finished: [IntCounter; 7],
}

/// The series of the worker of a classifier, looked up once.
#[derive(Clone, Debug)]
pub struct ClassifierMetrics {
    pub model_load: Histogram,
    /// A run of the graph over a batch.
    pub step_duration: Histogram,
    pub queue_wait: Histogram,
    pub device_errors: IntCounter,
    pub batch_rows: Histogram,
    pub rows: IntCounter,
    pub rows_waiting: IntGauge,
}

/// The families that have one series, or a few, for each worker.
#[derive(Clone, Debug)]
struct WorkerFamilies {
    model_load: HistogramVec,
    batches: BatchFamilies,
    steps: StepFamilies,
    generations: GenerationFamilies,
    sessions: SessionFamilies,
    prefixes: PrefixFamilies,
}

#[derive(Clone, Debug)]
struct StepFamilies {
    duration: HistogramVec,
    overhead: HistogramVec,
    sequences: HistogramVec,
    tokens: HistogramVec,
    device_errors: IntCounterVec,
}

#[derive(Clone, Debug)]
struct GenerationFamilies {
    queue_wait: HistogramVec,
    inter_token_latency: HistogramVec,
    time_to_first_token: HistogramVec,
    tokens: IntCounterVec,
    finished: IntCounterVec,
    sequences: IntGaugeVec,
}

#[derive(Clone, Debug)]
struct SessionFamilies {
    by_residence: IntGaugeVec,
    lanes: IntGaugeVec,
    park: HistogramVec,
    park_failures: IntCounterVec,
    resume: HistogramVec,
    moves: HistogramVec,
    evicted: IntCounterVec,
    expired: IntCounterVec,
    resumed_tokens: IntCounterVec,
    recomputed_tokens: IntCounterVec,
    requests_repeated: IntCounterVec,
}

/// Of classifiers.
#[derive(Clone, Debug)]
struct BatchFamilies {
    rows: HistogramVec,
    rows_total: IntCounterVec,
    rows_waiting: IntGaugeVec,
}

/// Of what prompts have in common.
#[derive(Clone, Debug)]
struct PrefixFamilies {
    tokens: IntCounterVec,
    bytes: IntGaugeVec,
    lookups: IntCounterVec,
}

impl Metrics {
    /// A fresh set, every series of fixed labels at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            generations_accepted: counter(
                r,
                "serve_generations_accepted_total",
                "Generations that were begun.",
                &["model"],
            ),
            requests_rejected: counter(
                r,
                "serve_requests_rejected_total",
                "Requests that were refused, and generations that failed.",
                &["reason"],
            ),
            calls: counter(r, "serve_calls_total", "Calls that ended.", &["api", "code"]),
            calls_in_flight: gauge(r, "serve_calls_in_flight", "Calls that are open.", &["api"]),
            call_duration: long_seconds(
                r,
                "serve_call_duration_seconds",
                "From a call's arrival to its end.",
                &["api"],
            ),
            oip_calls: register(
                r,
                IntGauge::new(
                    "serve_oip_calls",
                    "Calls of the Open Inference Protocol that have one of oip.calls_max places.",
                ),
            ),
            classifications: register(
                r,
                IntGauge::new("serve_classifications", "Classifications that are in flight."),
            ),
            quic: QuicMetrics::new(r),
            workers: WorkerFamilies::new(r),
            tenant_sessions: gauge(
                r,
                "serve_tenant_sessions",
                "Sessions that a tenant keeps, on all devices.",
                &["tenant"],
            ),
            tenant_generations: gauge(
                r,
                "serve_tenant_generations",
                "Generations of a tenant that run or wait for a lane.",
                &["tenant"],
            ),
            registry,
        };
        for kind in RejectKind::ALL {
            metrics.requests_rejected.with_label_values(&[kind.label()]);
        }
        for api in Api::ALL {
            metrics.calls_in_flight.with_label_values(&[api.label()]);
        }
        metrics.register_process();
        metrics
    }

    /// The series of the worker of `model` on `device`.
    pub fn worker(&self, model: &str, device: &str) -> WorkerMetrics {
        self.workers.worker(model, device)
    }

    /// The series of the worker of the classifier `model` on `device`.
    pub fn classifier(&self, model: &str, device: &str) -> ClassifierMetrics {
        let WorkerFamilies { model_load, batches, steps, generations, .. } = &self.workers;
        let base = [model, device];
        ClassifierMetrics {
            model_load: model_load.with_label_values(&base),
            step_duration: steps.duration.with_label_values(&base),
            queue_wait: generations.queue_wait.with_label_values(&base),
            device_errors: steps.device_errors.with_label_values(&base),
            batch_rows: batches.rows.with_label_values(&base),
            rows: batches.rows_total.with_label_values(&base),
            rows_waiting: batches.rows_waiting.with_label_values(&base),
        }
    }

    /// Steps that the worker of `model` on `device` has run.
    pub fn steps(&self, model: &str, device: &str) -> u64 {
        self.workers.steps.duration.with_label_values(&[model, device]).get_sample_count()
    }

    /// The series of a tenant that is listed in the tokens file, or has no name.
    pub fn tenant(&self, name: &str) -> TenantMetrics {
        TenantMetrics {
            sessions: self.tenant_sessions.with_label_values(&[name]),
            generations: self.tenant_generations.with_label_values(&[name]),
        }
    }

    /// Tells no more of a tenant.
    pub fn forget_tenant(&self, name: &str) {
        // One that nobody has asked for has none.
        self.tenant_sessions.remove_label_values(&[name]).ok();
        self.tenant_generations.remove_label_values(&[name]).ok();
    }

    /// All metrics in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("a vector takes all that is written to it");
        String::from_utf8(text).expect("the text format is UTF-8")
    }

    #[cfg(target_os = "linux")]
    fn register_process(&self) {
        let collector = prometheus::process_collector::ProcessCollector::for_self();
        self.registry.register(Box::new(collector)).expect("names are distinct");
    }

    #[cfg(not(target_os = "linux"))]
    fn register_process(&self) {}
}

impl QuicMetrics {
    const HANDSHAKES: [&str; 7] =
        ["completed", "abandoned", "failed", "timed_out", "refused", "retried", "ignored"];
    const TICKETS: [&str; 3] = ["resumed", "expired", "unknown"];
    const EARLY_CALLS: [&str; 2] = ["at_once", "confirmed"];

    fn new(r: &Registry) -> Self {
        let one = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let metrics = Self {
            connections: register(
                r,
                IntGauge::new("serve_quic_connections", "QUIC connections that are open."),
            ),
            handshakes: counter(
                r,
                "serve_quic_handshakes_total",
                "QUIC handshakes, by result.",
                &["result"],
            ),
            tickets: counter(
                r,
                "serve_quic_tickets_total",
                "Tickets shown to resume; early data is accepted with those that are resumed alone.",
                &["result"],
            ),
            early_calls: counter(
                r,
                "serve_quic_early_calls_total",
                "Calls in accepted early data, run at once or when the handshake was confirmed.",
                &["run"],
            ),
            rtt: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "serve_quic_rtt_seconds",
                        "Round trips of connections, every 10 s in which one was measured.",
                    )
                    .buckets(doubling(25e-6, 19)),
                ),
            ),
            sent_packets: one("serve_quic_sent_packets_total", "QUIC packets that were sent."),
            lost_packets: one("serve_quic_lost_packets_total", "Sent packets taken for lost."),
            sent_bytes: one("serve_quic_sent_bytes_total", "Bytes of UDP that were sent."),
            received_bytes: one("serve_quic_received_bytes_total", "Bytes of UDP that came."),
            congestion_events: one(
                "serve_quic_congestion_events_total",
                "Times that a connection slowed down for the network.",
            ),
            black_holes: one(
                "serve_quic_black_holes_total",
                "Times that a path stopped taking packets as large as before.",
            ),
            migrations: one(
                "serve_quic_migrations_total",
                "Times that a client was found at another address than before.",
            ),
        };
        for (family, labels) in [
            (&metrics.handshakes, Self::HANDSHAKES.as_slice()),
            (&metrics.tickets, Self::TICKETS.as_slice()),
            (&metrics.early_calls, Self::EARLY_CALLS.as_slice()),
        ] {
            for label in labels {
                family.with_label_values(&[label]);
            }
        }
        metrics
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Api {
    pub const ALL: [Self; 4] = [Self::Grpc, Self::Quic, Self::Oip, Self::Rest];

    /// The label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
            Self::Oip => "oip",
            Self::Rest => "rest",
        }
    }
}

impl WorkerMetrics {
    /// The counter of lookups of prompts' beginnings that came to this.
    pub fn prefix_lookups(&self, miss: Option<Miss>) -> &IntCounter {
        match miss {
            None => &self.prefix_hits,
            Some(miss) => &self.prefix_misses[miss as usize],
        }
    }

    /// From a request's arrival to its first token.
    pub fn time_to_first_token(&self, origin: Origin) -> &Histogram {
        &self.time_to_first_token[origin as usize]
    }

    /// Generations that ended for `reason`.
    pub fn finished(&self, reason: FinishReason) -> &IntCounter {
        &self.finished[reason as usize]
    }
}

impl WorkerFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            model_load: long_seconds(
                r,
                "serve_model_load_seconds",
                "Loading the model onto the device.",
                WORKER,
            ),
            batches: BatchFamilies::new(r),
            steps: StepFamilies::new(r),
            generations: GenerationFamilies::new(r),
            sessions: SessionFamilies::new(r),
            prefixes: PrefixFamilies::new(r),
        }
    }

    fn worker(&self, model: &str, device: &str) -> WorkerMetrics {
        let Self { model_load, steps, generations, sessions, prefixes, .. } = self;
        let base = [model, device];
        let with = |label| [model, device, label];
        WorkerMetrics {
            model_load: model_load.with_label_values(&base),
            step_duration: steps.duration.with_label_values(&base),
            step_overhead: steps.overhead.with_label_values(&base),
            step_sequences: steps.sequences.with_label_values(&base),
            step_tokens: steps.tokens.with_label_values(&base),
            queue_wait: generations.queue_wait.with_label_values(&base),
            inter_token_latency: generations.inter_token_latency.with_label_values(&base),
            prompt_tokens: generations.tokens.with_label_values(&with("prompt")),
            generated_tokens: generations.tokens.with_label_values(&with("generated")),
            sequences_waiting: generations.sequences.with_label_values(&with("waiting")),
            sequences_running: generations.sequences.with_label_values(&with("running")),
            sequences_paused: generations.sequences.with_label_values(&with("paused")),
            sessions_active: sessions.by_residence.with_label_values(&with("active")),
            sessions_resident: sessions.by_residence.with_label_values(&with("resident")),
            sessions_parked: sessions.by_residence.with_label_values(&with("parked")),
            lanes_used: sessions.lanes.with_label_values(&with("used")),
            lanes_free: sessions.lanes.with_label_values(&with("free")),
            session_park: sessions.park.with_label_values(&base),
            session_park_failures: sessions.park_failures.with_label_values(&base),
            session_resume: sessions.resume.with_label_values(&base),
            session_move: sessions.moves.with_label_values(&base),
            sessions_evicted: sessions.evicted.with_label_values(&base),
            sessions_expired: sessions.expired.with_label_values(&base),
            resumed_tokens: sessions.resumed_tokens.with_label_values(&base),
            recomputed_tokens: sessions.recomputed_tokens.with_label_values(&base),
            requests_repeated: sessions.requests_repeated.with_label_values(&base),
            prefix_tokens: prefixes.tokens.with_label_values(&base),
            prefix_bytes: prefixes.bytes.with_label_values(&base),
            prefix_hits: prefixes.lookups.with_label_values(&with("hit")),
            prefix_misses: Miss::ALL
                .map(|miss| prefixes.lookups.with_label_values(&with(miss.label()))),
            device_errors: steps.device_errors.with_label_values(&base),
            time_to_first_token: [Origin::New, Origin::Resident, Origin::Parked].map(|origin| {
                generations.time_to_first_token.with_label_values(&with(origin.label()))
            }),
            finished: FinishReason::ALL
                .map(|reason| generations.finished.with_label_values(&with(reason.label()))),
        }
    }
}

impl BatchFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            rows: counts(r, "serve_batch_rows", "Pictures in one run of a classifier.", WORKER),
            rows_total: counter(r, "serve_rows_total", "Pictures that were classified.", WORKER),
            rows_waiting: gauge(r, "serve_rows_waiting", "Pictures that wait for a run.", WORKER),
        }
    }
}

impl StepFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            duration: seconds(
                r,
                "serve_step_duration_seconds",
                "One run of the model over a batch.",
                WORKER,
            ),
            overhead: short_seconds(
                r,
                "serve_step_overhead_seconds",
                "What a step takes outside the device: scheduling, sampling, text.",
                WORKER,
            ),
            sequences: counts(
                r,
                "serve_step_sequences",
                "Sequences that advance in one step.",
                WORKER,
            ),
            tokens: counts(
                r,
                "serve_step_tokens",
                "Tokens of one step, prompt and generated.",
                WORKER,
            ),
            device_errors: counter(
                r,
                "serve_device_errors_total",
                "Steps that the device could not run.",
                WORKER,
            ),
        }
    }
}

impl GenerationFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            queue_wait: seconds(
                r,
                "serve_queue_wait_seconds",
                "From a request's arrival to its first step.",
                WORKER,
            ),
            inter_token_latency: seconds(
                r,
                "serve_inter_token_latency_seconds",
                "Between two tokens of a generation.",
                WORKER,
            ),
            time_to_first_token: seconds(
                r,
                "serve_time_to_first_token_seconds",
                "From a request's arrival to its first token, by where the session's state was.",
                &["model", "device", "origin"],
            ),
            tokens: counter(
                r,
                "serve_tokens_total",
                "Tokens that were computed.",
                &["model", "device", "phase"],
            ),
            finished: counter(
                r,
                "serve_generations_finished_total",
                "Generations that ended, by reason.",
                &["model", "device", "reason"],
            ),
            sequences: gauge(
                r,
                "serve_sequences",
                "Generations in flight: waiting for a lane, running, or paused by a slow reader.",
                &["model", "device", "state"],
            ),
        }
    }
}

impl SessionFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            by_residence: gauge(
                r,
                "serve_sessions",
                "Sessions: with a generation, idle in the device, or in the state cache alone.",
                &["model", "device", "residence"],
            ),
            lanes: gauge(
                r,
                "serve_lanes",
                "Rows of the device's state arena.",
                &["model", "device", "state"],
            ),
            park: seconds(
                r,
                "serve_session_park_seconds",
                "Writing a session's record to the state cache.",
                WORKER,
            ),
            park_failures: counter(
                r,
                "serve_session_park_failures_total",
                "Session records that could not be written.",
                WORKER,
            ),
            moves: seconds(
                r,
                "serve_session_move_seconds",
                "Bringing a session from this device to another.",
                WORKER,
            ),
            resume: seconds(
                r,
                "serve_session_resume_seconds",
                "Reading a session's record back into a lane.",
                WORKER,
            ),
            evicted: counter(
                r,
                "serve_sessions_evicted_total",
                "Sessions forgotten because there were too many.",
                WORKER,
            ),
            expired: counter(
                r,
                "serve_sessions_expired_total",
                "Sessions forgotten because nobody had used them for too long.",
                WORKER,
            ),
            resumed_tokens: counter(
                r,
                "serve_resumed_tokens_total",
                "Tokens of sessions that generations went on with, whose state was kept.",
                WORKER,
            ),
            recomputed_tokens: counter(
                r,
                "serve_recomputed_tokens_total",
                "Tokens of sessions that generations went on with, whose state was computed again.",
                WORKER,
            ),
            requests_repeated: counter(
                r,
                "serve_requests_repeated_total",
                "Requests that had been sent before, and were not run again.",
                WORKER,
            ),
        }
    }
}

impl PrefixFamilies {
    fn new(r: &Registry) -> Self {
        Self {
            tokens: counter(
                r,
                "serve_prefix_tokens_total",
                "Tokens of new sessions' prompts whose state was kept, as others had begun alike.",
                WORKER,
            ),
            bytes: gauge(
                r,
                "serve_prefix_bytes",
                "States kept of what prompts have in common.",
                WORKER,
            ),
            lookups: counter(
                r,
                "serve_prefix_lookups_total",
                "Prompts of new sessions: hit, or why there was no state of their beginning.",
                &["model", "device", "result"],
            ),
        }
    }
}

impl Origin {
    fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Resident => "resident",
            Self::Parked => "parked",
        }
    }
}

impl FinishReason {
    fn label(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Stop => "stop",
            Self::EndOfText => "end_of_text",
            Self::Cancelled => "cancelled",
            Self::Shutdown => "shutdown",
            Self::Interrupted => "interrupted",
            Self::Prompt => "prompt",
        }
    }
}

/// From 25 µs, below a step of the smallest model, doubling to 6.6 s.
fn seconds(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    histogram(registry, HistogramOpts::new(name, help).buckets(doubling(25e-6, 19)), labels)
}

/// From 2.5 µs, doubling to 0.66 s: what goes on beside the model is to stay within 20 µs.
fn short_seconds(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    histogram(registry, HistogramOpts::new(name, help).buckets(doubling(25e-7, 19)), labels)
}

/// From 2^-10 s, about 1 ms, doubling to 2048 s: a call may hold all turns of a chat.
fn long_seconds(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    histogram(registry, HistogramOpts::new(name, help).buckets(doubling(1.0 / 1024.0, 22)), labels)
}

/// From 1, doubling to 4096.
fn counts(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    histogram(registry, HistogramOpts::new(name, help).buckets(doubling(1.0, 13)), labels)
}

fn histogram(registry: &Registry, options: HistogramOpts, labels: &[&str]) -> HistogramVec {
    register(registry, HistogramVec::new(options, labels))
}

fn doubling(first: f64, n: usize) -> Vec<f64> {
    exponential_buckets(first, 2.0, n).expect("positive and growing")
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("names and labels are constants and valid");
    registry.register(Box::new(collector.clone())).expect("names are distinct");
    collector
}
