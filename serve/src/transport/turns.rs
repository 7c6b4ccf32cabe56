//! One generation stream, whatever carries it: requests in, responses out, turn after turn.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use aerie_proto::v1::{self, generate_request::Message, generate_response::Event};
use tokio_stream::{Empty, Stream, empty, wrappers::WatchStream};

use super::{call::Call, standing::Standing};
use crate::{
    admission::Reject,
    auth::Caller,
    service::{Readiness, Service, TokenEvent, TokenStream},
    telemetry::metrics::Api,
};

/// The responses to a stream of requests.
///
/// Ends after the last turn of a client that has half-closed, at the first refusal, when the client
/// has gone, when it is its tenant's no more, and between turns when the server drains. Dropping it cancels what runs.
pub(super) struct Turns<R> {
    call: Call,
    service: Service,
    standing: Standing,
    requests: R,
    /// No further request will come.
    half_closed: bool,
    /// The client asked to cancel a turn that had not started yet.
    cancelled: bool,
    readiness: WatchStream<Readiness>,
    turn: Turn,
}

/// Why there are no more requests, other than that the client has half-closed.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody is there to read an answer.
    Gone,
    Refused(Reject),
}

impl From<Reject> for Broken {
    fn from(reject: Reject) -> Self {
        Self::Refused(reject)
    }
}

impl Turns<Empty<Result<v1::GenerateRequest, Broken>>> {
    /// The tokens of a session, to one that only reads.
    pub(super) fn attached(
        api: Api,
        service: Service,
        caller: Caller,
        request: v1::AttachRequest,
    ) -> Self {
        let who = caller.who;
        let mut turns = Self::new(api, service.clone(), caller, empty());
        turns.half_closed = true;
        turns.turn = Turn::Starting(Box::pin(async move { service.attach(who, &request).await }));
        turns
    }
}

type Starting = Pin<Box<dyn Future<Output = Result<TokenStream, Reject>> + Send>>;

enum Turn {
    Idle,
    Starting(Starting),
    Running(TokenStream),
    Over,
}

impl<R> Turns<R>
where
    R: Stream<Item = Result<v1::GenerateRequest, Broken>> + Unpin,
{
    pub(super) fn new(api: Api, service: Service, caller: Caller, requests: R) -> Self {
        Self {
            standing: Standing::new(caller, &service),
            call: Call::begin(api, &service),
            readiness: WatchStream::new(service.readiness()),
            service,
            requests,
            half_closed: false,
            cancelled: false,
            turn: Turn::Idle,
        }
    }

    /// Ends the stream; with an error, unless every turn was finished or nobody is there.
    fn end(&mut self, end: Result<(), Broken>) -> Option<Result<v1::GenerateResponse, Reject>> {
        // What runs is cancelled by this.
        self.turn = Turn::Over;
        match end {
            Ok(()) => {
                self.call.succeed();
                None
            }
            Err(Broken::Gone) => None,
            Err(Broken::Refused(reject)) => {
                self.call.refuse(&reject);
                Some(Err(reject))
            }
        }
    }

    /// Takes in all that the client has sent by now.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while !self.half_closed && !matches!(self.turn, Turn::Over) {
            match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.half_closed = true,
                Poll::Ready(Some(request)) => self.take(request?).map_err(Broken::Refused)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, request: v1::GenerateRequest) -> Result<(), Reject> {
        match (request.message, &self.turn) {
            (Some(Message::Start(start)), Turn::Idle) => {
                let (service, who) = (self.service.clone(), self.standing.who());
                let starting = async move { service.generate(who, start).await };
                self.turn = Turn::Starting(Box::pin(starting));
                Ok(())
            }
            (Some(Message::Start(_)), _) => Err(Reject::Invalid {
                field: "start",
                problem: "came before the previous generation had finished".to_owned(),
            }),
            (Some(Message::Cancel(_)), Turn::Running(tokens)) => {
                tokens.cancel();
                Ok(())
            }
            (Some(Message::Cancel(_)), Turn::Starting(_)) => {
                self.cancelled = true;
                Ok(())
            }
            // It crossed the end of the turn on the wire.
            (Some(Message::Cancel(_)), Turn::Idle | Turn::Over) => Ok(()),
            (None, _) => Err(Reject::Invalid {
                field: "message",
                problem: "is neither `start` nor `cancel`".to_owned(),
            }),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.half_closed {
            return Poll::Ready(());
        }
        loop {
            match ready!(Pin::new(&mut self.readiness).poll_next(cx)) {
                Some(Readiness::Draining) | None => return Poll::Ready(()),
                Some(_) => {}
            }
        }
    }

    fn response(&mut self, event: Option<TokenEvent>) -> Result<v1::GenerateResponse, Reject> {
        let event = match event {
            Some(TokenEvent::Accepted(accepted)) => Event::Accepted(accepted),
            Some(TokenEvent::Attached(attached)) => Event::Attached(attached),
            Some(TokenEvent::Delta(delta)) => Event::Delta(delta),
            Some(TokenEvent::Finished(finished)) => {
                self.turn = Turn::Idle;
                Event::Finished(finished)
            }
            Some(TokenEvent::Failed(reject)) => return Err(reject),
            None => return Err(Reject::Internal { what: "its worker has gone" }),
        };
        Ok(v1::GenerateResponse { event: Some(event) })
    }
}

impl<R> Stream for Turns<R>
where
    R: Stream<Item = Result<v1::GenerateRequest, Broken>> + Unpin,
{
    type Item = Result<v1::GenerateResponse, Reject>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if matches!(this.turn, Turn::Over) {
                return Poll::Ready(None);
            }
            if let Err(broken) = this
                .standing
                .check(cx)
                .map_err(Broken::Refused)
                .and_then(|()| this.take_requests(cx))
            {
                return Poll::Ready(this.end(Err(broken)));
            }
            let reject = match &mut this.turn {
                Turn::Idle => {
                    ready!(this.poll_idle(cx));
                    return Poll::Ready(this.end(Ok(())));
                }
                Turn::Starting(starting) => match ready!(starting.as_mut().poll(cx)) {
                    Ok(tokens) => {
                        if mem::take(&mut this.cancelled) {
                            tokens.cancel();
                        }
                        this.turn = Turn::Running(tokens);
                        continue;
                    }
                    Err(reject) => reject,
                },
                Turn::Running(tokens) => {
                    let event = ready!(Pin::new(tokens).poll_next(cx));
                    match this.response(event) {
                        Ok(response) => return Poll::Ready(Some(Ok(response))),
                        Err(reject) => reject,
                    }
                }
                Turn::Over => return Poll::Ready(None),
            };
            return Poll::Ready(this.end(Err(Broken::Refused(reject))));
        }
    }
}

impl<R> fmt::Debug for Turns<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("half_closed", &self.half_closed).finish_non_exhaustive()
    }
}
