//! A stream of requests: many at once, but those of one sequence one after another.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use aerie_proto::{
    inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse},
    v1,
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_stream::{Stream, wrappers::WatchStream};

use super::{Asked, Oip};
use crate::{
    admission::{Reject, Wait},
    auth::{Caller, Principal},
    oip::{
        classify::seal,
        recurrent::{Generation, Said},
    },
    service::{Readiness, TokenEvent, TokenStream},
    transport::{standing::Standing, turns::Broken},
};

/// The responses to a stream of requests.
///
/// Refusals are told in it, and it goes on; `strict` clients get them as the end of the stream. It ends when the caller
/// is its tenant's no more. An error is its end. Dropping it cancels what runs.
pub(super) struct Exchange<R> {
    oip: Oip,
    standing: Standing,
    requests: R,
    strict: bool,
    /// No further request will come.
    half_closed: bool,
    readiness: WatchStream<Readiness>,
    /// Each gets its turn to respond.
    running: VecDeque<Turn>,
    /// For the end of another of their sequence.
    waiting: VecDeque<Waiting>,
    /// Requests that were refused as they came.
    refused: VecDeque<(String, Reject)>,
    /// Ends the stream, unless something is asked for before; none while something runs.
    idle: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

/// One request that is to run.
struct Waiting {
    id: String,
    asked: Asked,
    /// As it came.
    bytes: usize,
}

/// One request that runs.
struct Turn {
    id: String,
    bytes: usize,
    /// The session of its sequence.
    sequence: Option<String>,
    state: State,
}

type Soon<T> = Pin<Box<dyn Future<Output = Result<T, Reject>> + Send>>;

enum State {
    Generating(Generating),
    Classifying(Soon<ModelInferResponse>),
    Over,
}

/// A generation that runs.
struct Generating {
    generation: Box<Generation>,
    arrived: Instant,
    /// Until it ran.
    queue: Duration,
    phase: Phase,
}

enum Phase {
    Starting(Soon<TokenStream>),
    Running(TokenStream),
    Ending(Pin<Box<dyn Future<Output = ()> + Send>>, v1::Finished),
}

impl<R> Exchange<R>
where
    R: Stream<Item = Result<ModelInferRequest, Broken>> + Unpin,
{
    pub(super) fn new(oip: Oip, caller: Caller, requests: R, strict: bool) -> Self {
        Self {
            readiness: WatchStream::new(oip.service().readiness()),
            standing: Standing::new(caller, oip.service()),
            oip,
            requests,
            strict,
            half_closed: false,
            running: VecDeque::new(),
            waiting: VecDeque::new(),
            refused: VecDeque::new(),
            idle: None,
            is_over: false,
        }
    }

    /// Waits until there is room to tell a response. The client may leave no room for as long as it may be idle, and its
    /// caller has to be who it was.
    pub(super) async fn tell_to(
        &mut self,
        client: &mpsc::Sender<ModelStreamInferResponse>,
        response: ModelStreamInferResponse,
    ) -> Result<(), Broken> {
        let (max, standing) = (self.idle_max(), &mut self.standing);
        let revoked = poll_fn(|cx| match standing.check(cx) {
            Ok(()) => Poll::Pending,
            Err(reject) => Poll::Ready(reject),
        });
        let reject = tokio::select! {
            biased;
            told = client.send(response) => return told.map_err(|_| Broken::Gone),
            reject = revoked => reject,
            () = sleep(max) => Reject::Expired { wait: Wait::Reader, max },
        };
        self.oip.service().count_reject(&reject);
        Err(Broken::Refused(reject))
    }

    fn idle_max(&self) -> Duration {
        Duration::from_millis(self.oip.setup().config.idle_ms_max.get().into())
    }

    /// Takes in what the client has sent, as far as there is room.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while !self.half_closed && self.has_room() {
            match Pin::new(&mut self.requests).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.half_closed = true,
                Poll::Ready(Some(request)) => self.take(request?),
            }
        }
        Ok(())
    }

    /// Whether another request may be taken in. With those that are there, it may come to two messages.
    fn has_room(&self) -> bool {
        let config = &self.oip.setup().config;
        let n = self.running.len() + self.waiting.len() + self.refused.len();
        let running = self.running.iter().map(|it| it.bytes);
        let waiting = self.waiting.iter().map(|it| it.bytes);
        let refused = self.refused.iter().map(|(id, _)| id.len());
        let bytes: usize = running.chain(waiting).chain(refused).sum();
        n < config.stream_requests_max as usize && bytes < config.message_bytes_max as usize
    }

    fn take(&mut self, request: ModelInferRequest) {
        self.idle = None;
        let (id, bytes) = (request.id.clone(), request.encoded_len());
        match self.oip.parse(self.standing.who(), request) {
            Ok(asked) => self.waiting.push_back(Waiting { id, asked, bytes }),
            Err(reject) => self.refused.push_back((id, reject)),
        }
    }

    /// Starts what waits for nobody.
    fn start_waiting(&mut self) {
        for new in mem::take(&mut self.waiting) {
            let sequence = new.asked.sequence();
            let running = self.running.iter().filter_map(|it| it.sequence.as_deref());
            let waiting = self.waiting.iter().filter_map(|it| it.asked.sequence());
            let mut others = running.chain(waiting);
            if sequence.is_some_and(|it| others.any(|other| other == it)) {
                self.waiting.push_back(new);
            } else {
                self.running.push_back(Turn::start(&self.oip, self.standing.who(), new));
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
            match turn.poll(&self.oip, self.standing.who(), cx) {
                Poll::Pending => self.running.push_back(turn),
                Poll::Ready(None) => {}
                Poll::Ready(Some(response)) => {
                    let id = turn.id.clone();
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

    /// Waits until the stream has been idle for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Reject> {
        if !self.running.is_empty() || !self.waiting.is_empty() {
            self.idle = None;
            return Poll::Pending;
        }
        let max = self.idle_max();
        let idle = self.idle.get_or_insert_with(|| Box::pin(sleep(max)));
        ready!(idle.as_mut().poll(cx));
        Poll::Ready(Reject::Expired { wait: Wait::Stream, max })
    }

    /// Ends the stream, and with it what runs.
    fn end(&mut self, broken: Option<Broken>) -> Option<Result<ModelStreamInferResponse, Broken>> {
        self.is_over = true;
        self.running.clear();
        self.waiting.clear();
        broken.map(Err)
    }

    fn tell(
        &mut self,
        id: String,
        response: Result<ModelInferResponse, Reject>,
    ) -> Option<Result<ModelStreamInferResponse, Broken>> {
        let response = match response {
            Ok(response) => ModelStreamInferResponse {
                infer_response: Some(response),
                ..ModelStreamInferResponse::default()
            },
            Err(reject) if self.strict => return self.end(Some(Broken::Refused(reject))),
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
    type Item = Result<ModelStreamInferResponse, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.is_over {
                return Poll::Ready(None);
            }
            let held = this.standing.check(cx).map_err(Broken::Refused);
            if let Err(broken) = held.and_then(|()| this.take_requests(cx)) {
                this.oip.count(&broken);
                return Poll::Ready(this.end(Some(broken)));
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
                return Poll::Ready(this.end(None));
            }
            let idle = Broken::Refused(ready!(this.poll_idle(cx)));
            this.oip.count(&idle);
            return Poll::Ready(this.end(Some(idle)));
        }
    }
}

impl Turn {
    fn start(oip: &Oip, who: Principal, new: Waiting) -> Self {
        let Waiting { id, asked, bytes } = new;
        let sequence = asked.sequence().map(str::to_owned);
        let oip = oip.clone();
        let state = match asked {
            Asked::Generation(generation) => {
                let arrived = oip.now();
                let of = generation.clone();
                let starting = Box::pin(async move { oip.open(who, &of).await });
                let phase = Phase::Starting(starting);
                State::Generating(Generating { generation, arrived, queue: Duration::ZERO, phase })
            }
            Asked::Classification(classification, idx) => {
                State::Classifying(Box::pin(async move {
                    let mut response = oip.classify(who, *classification, idx).await?;
                    seal(&mut response);
                    Ok(response)
                }))
            }
        };
        Self { id, bytes, sequence, state }
    }

    /// The next response; none once it is over.
    fn poll(
        &mut self,
        oip: &Oip,
        who: Principal,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ModelInferResponse, Reject>>> {
        let step = match &mut self.state {
            State::Over => return Poll::Ready(None),
            State::Classifying(classified) => ready!(classified.as_mut().poll(cx)).map(Step::whole),
            State::Generating(generating) => {
                let step = ready!(generating.poll(oip, who, cx));
                if step.is_err() {
                    oip.failed(&generating.generation.start.model, generating.arrived);
                }
                step
            }
        };
        Poll::Ready(match step {
            Ok(Step::More(response)) => Some(Ok(response)),
            Ok(Step::End(response)) => {
                self.state = State::Over;
                response.map(Ok)
            }
            Err(reject) => {
                self.state = State::Over;
                Some(Err(reject))
            }
        })
    }
}

/// How a turn went on.
enum Step {
    More(ModelInferResponse),
    /// With a last response, or without.
    End(Option<ModelInferResponse>),
}

impl Step {
    fn whole(response: ModelInferResponse) -> Self {
        Self::End(Some(response))
    }
}

impl Generating {
    fn poll(
        &mut self,
        oip: &Oip,
        who: Principal,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Reject>> {
        let Self { generation, arrived, queue, phase } = self;
        let model = &generation.start.model;
        loop {
            match phase {
                Phase::Starting(starting) => {
                    *phase = Phase::Running(ready!(starting.as_mut().poll(cx))?);
                }
                Phase::Running(tokens) => match ready!(Pin::new(&mut *tokens).poll_next(cx)) {
                    Some(TokenEvent::Accepted(_) | TokenEvent::Attached(_)) => {}
                    Some(TokenEvent::Delta(v1::Delta { text, ids, .. })) => {
                        let said = Said { text, tokens: ids };
                        return Poll::Ready(Ok(Step::More(generation.part(model, &said))));
                    }
                    Some(TokenEvent::Finished(finished)) => {
                        *queue = tokens.queue();
                        let (oip, of) = (oip.clone(), generation.clone());
                        let ending = async move { oip.close(who, &of, &finished).await };
                        *phase = Phase::Ending(Box::pin(ending), finished);
                    }
                    Some(TokenEvent::Failed(reject)) => return Poll::Ready(Err(reject)),
                    None => {
                        let what = "its worker has gone";
                        return Poll::Ready(Err(Reject::Internal { what }));
                    }
                },
                Phase::Ending(ending, finished) => {
                    ready!(ending.as_mut().poll(cx));
                    oip.succeeded(generation, *arrived, *queue);
                    let end = generation.tells_end.then(|| generation.end(model, finished));
                    return Poll::Ready(Ok(Step::End(end)));
                }
            }
        }
    }
}

impl<R> fmt::Debug for Exchange<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("running", &self.running.len()).finish_non_exhaustive()
    }
}
