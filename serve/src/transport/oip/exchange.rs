//! A stream of requests: many at once, but those of one sequence one after another.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use aerie_proto::{
    inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse},
    v1,
};
use tokio_stream::{Stream, wrappers::WatchStream};

use super::Oip;
use crate::{
    admission::Reject,
    auth::Principal,
    oip::recurrent::{Generation, Said},
    service::{Readiness, TokenEvent, TokenStream},
    telemetry::metrics::Api,
    transport::{call::Call, turns::Broken},
};

/// The responses to a stream of requests.
///
/// Refusals are told in it, and it goes on; `strict` clients get them as the end of the stream. Dropping it cancels
/// what runs.
pub(super) struct Exchange<R> {
    call: Call,
    oip: Oip,
    who: Principal,
    requests: R,
    strict: bool,
    /// No further request will come.
    half_closed: bool,
    readiness: WatchStream<Readiness>,
    /// Each gets its turn to respond.
    running: VecDeque<Turn>,
    /// For the end of another of their sequence.
    waiting: VecDeque<Generation>,
    /// Requests that were refused as they came.
    refused: VecDeque<(String, Reject)>,
    is_over: bool,
}

/// One request that runs.
struct Turn {
    generation: Generation,
    arrived: Instant,
    began: Option<Instant>,
    state: State,
}

type Soon<T> = Pin<Box<dyn Future<Output = Result<T, Reject>> + Send>>;

enum State {
    Starting(Soon<TokenStream>),
    Running(TokenStream),
    Ending(Soon<()>, v1::Finished),
    Over,
}

impl<R> Exchange<R>
where
    R: Stream<Item = Result<ModelInferRequest, Broken>> + Unpin,
{
    pub(super) fn new(oip: Oip, who: Principal, requests: R, strict: bool) -> Self {
        Self {
            call: Call::begin(Api::Oip, oip.service()),
            readiness: WatchStream::new(oip.service().readiness()),
            oip,
            who,
            requests,
            strict,
            half_closed: false,
            running: VecDeque::new(),
            waiting: VecDeque::new(),
            refused: VecDeque::new(),
            is_over: false,
        }
    }

    /// Takes in what the client has sent, as far as there is room.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let n_max = self.oip.setup().config.stream_requests_max as usize;
        while !self.half_closed
            && self.running.len() + self.waiting.len() + self.refused.len() < n_max
        {
            match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.half_closed = true,
                Poll::Ready(Some(request)) => self.take(request?),
            }
        }
        Ok(())
    }

    fn take(&mut self, request: ModelInferRequest) {
        let id = request.id.clone();
        match self.oip.parse(self.who, request) {
            Ok(generation) => self.waiting.push_back(generation),
            Err(reject) => self.refused.push_back((id, reject)),
        }
    }

    /// Starts what waits for nobody.
    fn start_waiting(&mut self) {
        for generation in mem::take(&mut self.waiting) {
            let mut others = self.running.iter().map(|it| &it.generation).chain(&self.waiting);
            let behind = others.any(|it| {
                generation.sequence.is_some() && it.start.session_id == generation.start.session_id
            });
            if behind {
                self.waiting.push_back(generation);
            } else {
                self.running.push_back(Turn::start(&self.oip, self.who, generation));
            }
        }
    }

    /// What those that run have to say, the one first that has not spoken for longest.
    fn poll_turns(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Option<(String, Result<ModelInferResponse, Reject>)> {
        for _ in 0..self.running.len() {
            let mut turn = self.running.pop_front().expect("it was counted");
            match turn.poll(&self.oip, self.who, cx) {
                Poll::Pending => self.running.push_back(turn),
                Poll::Ready(None) => {}
                Poll::Ready(Some(response)) => {
                    let id = turn.generation.start.request_id.clone();
                    self.running.push_back(turn);
                    return Some((id, response));
                }
            }
        }
        None
    }

    /// Whether nothing runs, and nothing will.
    fn is_done(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.running.is_empty() || !self.waiting.is_empty() {
            return false;
        }
        while !self.half_closed {
            match Pin::new(&mut self.readiness).poll_next(cx) {
                Poll::Pending => return false,
                Poll::Ready(Some(Readiness::Draining) | None) => break,
                Poll::Ready(Some(_)) => {}
            }
        }
        true
    }

    /// Ends the stream, and with it what runs.
    fn end(&mut self, reject: Option<Reject>) -> Option<Result<ModelStreamInferResponse, Reject>> {
        self.is_over = true;
        self.running.clear();
        self.waiting.clear();
        let reject = reject?;
        self.call.refuse(&reject);
        Some(Err(reject))
    }

    fn tell(
        &mut self,
        id: String,
        response: Result<ModelInferResponse, Reject>,
    ) -> Option<Result<ModelStreamInferResponse, Reject>> {
        let response = match response {
            Ok(response) => ModelStreamInferResponse {
                infer_response: Some(response),
                ..ModelStreamInferResponse::default()
            },
            Err(reject) if self.strict => return self.end(Some(reject)),
            Err(reject) => ModelStreamInferResponse {
                error_message: reject.to_string(),
                infer_response: Some(ModelInferResponse { id, ..ModelInferResponse::default() }),
            },
        };
        Some(Ok(response))
    }
}

impl<R> Stream for Exchange<R>
where
    R: Stream<Item = Result<ModelInferRequest, Broken>> + Unpin,
{
    type Item = Result<ModelStreamInferResponse, Reject>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.is_over {
                return Poll::Ready(None);
            }
            match this.take_requests(cx) {
                Ok(()) => {}
                Err(Broken::Gone) => return Poll::Ready(this.end(None)),
                Err(Broken::Refused(reject)) => return Poll::Ready(this.end(Some(reject))),
            }
            if let Some((id, reject)) = this.refused.pop_front() {
                return Poll::Ready(this.tell(id, Err(reject)));
            }
            this.start_waiting();
            let n_running = this.running.len();
            if let Some((id, response)) = this.poll_turns(cx) {
                return Poll::Ready(this.tell(id, response));
            }
            // Where one has ended, there is room, and others may have waited for it.
            if this.running.len() < n_running {
                continue;
            }
            if this.is_done(cx) {
                this.call.succeed();
                return Poll::Ready(this.end(None));
            }
            return Poll::Pending;
        }
    }
}

impl Turn {
    fn start(oip: &Oip, who: Principal, generation: Generation) -> Self {
        let (oip, of) = (oip.clone(), generation.clone());
        let arrived = oip.now();
        let starting = Box::pin(async move { oip.open(who, &of).await });
        Self { generation, arrived, began: None, state: State::Starting(starting) }
    }

    /// The next response; none once it is over.
    fn poll(
        &mut self,
        oip: &Oip,
        who: Principal,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ModelInferResponse, Reject>>> {
        let reject = loop {
            match &mut self.state {
                State::Starting(starting) => match starting.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(reject)) => break reject,
                    Poll::Ready(Ok(tokens)) => {
                        self.began = Some(oip.now());
                        self.state = State::Running(tokens);
                    }
                },
                State::Running(tokens) => match Pin::new(tokens).poll_next(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(TokenEvent::Accepted(_) | TokenEvent::Attached(_))) => {}
                    Poll::Ready(Some(TokenEvent::Delta(v1::Delta { text, ids, .. }))) => {
                        let said = Said { text, tokens: ids };
                        let model = &self.generation.start.model;
                        return Poll::Ready(Some(Ok(self.generation.part(model, &said))));
                    }
                    Poll::Ready(Some(TokenEvent::Finished(finished))) => {
                        let (oip, of) = (oip.clone(), self.generation.clone());
                        let ending = async move { oip.close(who, &of, &finished).await };
                        self.state = State::Ending(Box::pin(ending), finished);
                    }
                    Poll::Ready(Some(TokenEvent::Failed(reject))) => break reject,
                    Poll::Ready(None) => {
                        break Reject::Internal { what: "its worker has gone" };
                    }
                },
                State::Ending(ending, finished) => match ending.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(reject)) => break reject,
                    Poll::Ready(Ok(())) => {
                        let model = &self.generation.start.model;
                        let end =
                            self.generation.tells_end.then(|| self.generation.end(model, finished));
                        self.state = State::Over;
                        oip.succeeded(
                            &self.generation,
                            [self.arrived, self.began.unwrap_or(self.arrived)],
                        );
                        return Poll::Ready(end.map(Ok));
                    }
                },
                State::Over => return Poll::Ready(None),
            }
        };
        self.state = State::Over;
        oip.failed(&self.generation, self.arrived);
        Poll::Ready(Some(Err(reject)))
    }
}

impl<R> fmt::Debug for Exchange<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("running", &self.running.len()).finish_non_exhaustive()
    }
}
