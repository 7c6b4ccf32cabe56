//! What metrics tell of one call.

use std::{fmt, time::Instant};

use tonic::Code;

use super::grpc;
use crate::{
    admission::Reject,
    service::Service,
    telemetry::metrics::{Api, Metrics},
};

/// A call in flight. One that is dropped before its end is known counts as cancelled.
pub(super) struct Call {
    metrics: Metrics,
    api: Api,
    began: Instant,
    code: Code,
}

impl Call {
    #[expect(clippy::disallowed_methods, reason = "a transport measures real time")]
    pub(super) fn begin(api: Api, service: &Service) -> Self {
        let metrics = service.metrics().clone();
        metrics.calls_in_flight.with_label_values(&[api.label()]).inc();
        Self { metrics, api, began: Instant::now(), code: Code::Cancelled }
    }

    pub(super) fn succeed(&mut self) {
        self.code = Code::Ok;
    }

    pub(super) fn refuse(&mut self, reject: &Reject) {
        self.code = grpc::code(reject);
    }

    /// Ends with what gRPC is told.
    pub(super) fn close<T>(&mut self, result: &Result<T, tonic::Status>) {
        self.code = result.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
    }

    pub(super) fn end<T>(&mut self, result: &Result<T, Reject>) {
        match result {
            Ok(_) => self.succeed(),
            Err(reject) => self.refuse(reject),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let api = self.api.label();
        self.metrics.calls_in_flight.with_label_values(&[api]).dec();
        self.metrics.calls.with_label_values(&[api, label(self.code)]).inc();
        let duration = self.began.elapsed().as_secs_f64();
        self.metrics.call_duration.with_label_values(&[api]).observe(duration);
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("api", &self.api).field("code", &self.code).finish()
    }
}

/// The codes that [`grpc::code`] gives, and the two ends that are no refusal.
fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "permission_denied",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::OutOfRange => "out_of_range",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::Unavailable => "unavailable",
        _ => "internal",
    }
}
