//! The one API: calls in, answers and events out, whatever carries them.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use aerie_proto::v1::{self, call::Call, call_response::Result as Answer, generate_response};
use tokio::time::sleep;
use tokio_stream::Stream;

use crate::{
    Class, Credentials, Error, Retry, Trust, classify, grpc, quic, retry::Backoff, stitch::Stitch,
};

/// How long a connection may take to come about.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a piece of a session's file.
const CHUNK_BYTES: usize = 256 << 10;
/// Sessions asked for at once.
const PAGE_SESSIONS: u32 = 1000;

/// A connection to a server; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    retry: Retry,
}

#[derive(Clone, Debug)]
enum Transport {
    Grpc(grpc::Connection),
    Quic(quic::Connection),
}

/// A generation, or a session that is followed: a stream of [`Event`]s that ends after `Finished` or an error.
///
/// It survives its connection: it is asked for again, and tells each token and each byte of text once. Dropping it cancels
/// the generation, unless its request has an id and its session is kept: that one goes on for a while without a
/// reader. [`Generation::cancel`] ends any.
pub struct Generation {
    client: Client,
    question: Question,
    attempt: Attempt,
    /// None until the answer has begun.
    stitch: Option<Stitch>,
    backoff: Backoff,
    /// Whether it was told that it has been attached.
    is_attached: bool,
    is_cancelled: bool,
}

/// What is asked, and asked again.
#[derive(Clone, Debug)]
enum Question {
    Start(Box<v1::Start>),
    Attach(v1::AttachRequest),
}

/// How the current attempt stands.
enum Attempt {
    Running(Box<Responses>),
    Waiting(Pin<Box<dyn Future<Output = Result<Responses, Error>> + Send>>),
    Over,
}

enum Responses {
    Grpc(grpc::Responses),
    Quic(quic::Responses),
}

/// What a generation tells: `Accepted` or `Attached`, any number of `Delta`, `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The generation has begun.
    Accepted(v1::Accepted),
    /// The session is being followed.
    Attached(v1::Attached),
    /// One or more tokens.
    Delta(v1::Delta),
    /// Nothing more will come.
    Finished(v1::Finished),
}

/// Where a server is, and what it speaks.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Address<'a> {
    Grpc(&'a str),
    Grpcs(&'a str),
    Quic(&'a str),
}

impl Client {
    /// Connects to `grpc://HOST:PORT`, `grpcs://HOST:PORT` or `quic://HOST:PORT`.
    ///
    /// A server that this process has talked to before, over QUIC and with the same `trust`, need not
    /// be waited for: its first call goes out with the handshake if running it twice would do no harm,
    /// as with questions and with generations that name a session, `expected_position` and
    /// `request_id`. Over QUIC a connection that was idle for 30 s is given up, and the next call has
    /// another; one with a generation is kept.
    ///
    /// # Errors
    /// If the address has another form, `trust` cannot be used, or nobody answers within 10 s; a
    /// server that was not waited for makes that an error of the first call.
    pub async fn connect(address: &str, trust: &Trust) -> Result<Self, Error> {
        Self::connect_as(address, trust, &Credentials::default()).await
    }

    /// As [`Client::connect`], to a server that asks who calls.
    ///
    /// # Errors
    /// Also if `credentials` cannot be read or used. A server that does not take a certificate may make
    /// that an error of the first call; one that does not take a token makes it an error of each.
    pub async fn connect_as(
        address: &str,
        trust: &Trust,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let parsed = parse_address(address)?;
        let (Address::Grpc(authority) | Address::Grpcs(authority) | Address::Quic(authority)) =
            parsed;
        let place = quic::Place { address: address.to_owned(), authority: authority.to_owned() };
        let transport = match parsed {
            Address::Grpc(_) => {
                Transport::Grpc(grpc::Connection::open(&place, None, credentials).await?)
            }
            Address::Grpcs(_) => {
                Transport::Grpc(grpc::Connection::open(&place, Some(trust), credentials).await?)
            }
            Address::Quic(_) => {
                Transport::Quic(quic::Connection::open(place, trust, credentials).await?)
            }
        };
        Ok(Self { transport, retry: Retry::default() })
    }

    /// Goes on from another port, and from whatever address this machine has now. Generations that run
    /// go on. For machines that change networks, as phones do: without it a connection over QUIC is
    /// lost with the address it came from. Over gRPC it does nothing, since TCP cannot move.
    ///
    /// # Errors
    /// If the system gives no socket.
    pub async fn rebind(&self) -> Result<(), Error> {
        match &self.transport {
            Transport::Grpc(_) => Ok(()),
            Transport::Quic(connection) => connection.rebind().await,
        }
    }

    /// Leaves, and waits until the server may forget the connection; up to a second over QUIC.
    ///
    /// A QUIC client that ends without this stays connected in the server's eyes until its idle
    /// timeout. Generations of this connection end with it.
    pub async fn close(self) {
        match self.transport {
            // The kernel says goodbye for a socket of TCP, also for a process that has ended.
            Transport::Grpc(_) => {}
            Transport::Quic(connection) => connection.close().await,
        }
    }

    /// The same connection, with another patience. The default is [`Retry::default`].
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Begins a generation, and returns when the server has answered.
    ///
    /// Whatever is missing in `start` for asking again is put in: an id of the request, an id of a new session that
    /// is kept, a seed where nothing is.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the server refuses it, or is too busy for longer than this client is patient; a later
    /// failure is an item of the stream.
    pub async fn generate(&self, mut start: v1::Start) -> Result<Generation, Error> {
        if self.retry != Retry::NEVER {
            make_repeatable(&mut start);
        }
        self.stream(Question::Start(Box::new(start))).await
    }

    /// Follows a session from a position on: what it has said since, then what it says as it comes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn attach(&self, id: &str, from_position: u64) -> Result<Generation, Error> {
        let session_id = id.to_owned();
        self.stream(Question::Attach(v1::AttachRequest { session_id, from_position })).await
    }

    async fn stream(&self, question: Question) -> Result<Generation, Error> {
        let mut backoff = Backoff::new(self.retry);
        let responses = loop {
            match self.ask(question.clone()).await {
                Ok(responses) => break responses,
                // Whether it is there at all, somebody who waits for it wants to know at once.
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => match backoff.wait(&error, now(), rand::random()) {
                    Some(wait) => sleep(wait).await,
                    None => return Err(error),
                },
            }
        };
        let stitch = match &question {
            Question::Start(_) => None,
            Question::Attach(request) => Some(Stitch::of_reading(request.from_position)),
        };
        Ok(Generation {
            client: self.clone(),
            question,
            attempt: Attempt::Running(Box::new(responses)),
            stitch,
            backoff,
            is_attached: false,
            is_cancelled: false,
        })
    }

    async fn ask(&self, question: Question) -> Result<Responses, Error> {
        Ok(match (&self.transport, question) {
            (Transport::Grpc(connection), Question::Start(start)) => {
                Responses::Grpc(connection.generate(*start).await?)
            }
            (Transport::Grpc(connection), Question::Attach(request)) => {
                Responses::Grpc(connection.attach(request).await?)
            }
            (Transport::Quic(connection), Question::Start(start)) => {
                Responses::Quic(connection.generate(*start).await?)
            }
            (Transport::Quic(connection), Question::Attach(request)) => {
                Responses::Quic(connection.attach(request).await?)
            }
        })
    }

    /// The `n` most probable classes of each of `pictures`, files of JPEG or PNG, as the classifier `model` has it.
    ///
    /// # Errors
    /// [`Error::Wire`] over QUIC; else see [`Error`].
    pub async fn classify(
        &self,
        model: &str,
        pictures: &[Vec<u8>],
        n: u32,
    ) -> Result<Vec<Vec<Class>>, Error> {
        let Transport::Grpc(connection) = &self.transport else { return Err(Error::Wire) };
        let request = classify::request(model, pictures, n);
        let mut backoff = Backoff::new(self.retry);
        loop {
            match connection.infer(request.clone()).await {
                Ok(response) => return classify::classes(&response),
                Err(error) => match backoff.wait(&error, now(), rand::random()) {
                    Some(wait) => sleep(wait).await,
                    None => return Err(error),
                },
            }
        }
    }

    /// Every session that the server has, in the order of their ids.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sessions(&self) -> Result<Vec<v1::Session>, Error> {
        let mut sessions = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListSessionsRequest { page_size: PAGE_SESSIONS, page_token };
            let Answer::ListSessions(page) = self.unary(Call::ListSessions(request)).await? else {
                return Err(Error::Answer);
            };
            sessions.extend(page.sessions);
            if page.next_page_token.is_empty() {
                return Ok(sessions);
            }
            page_token = page.next_page_token;
        }
    }

    /// One session, by its id or its name.
    ///
    /// # Errors
    /// [`Error::Rejected`] with [`Code::NotFound`](crate::Code::NotFound) if there is none.
    pub async fn session(&self, id: &str) -> Result<v1::Session, Error> {
        let request = v1::GetSessionRequest { session_id: id.to_owned() };
        self.session_call(Call::GetSession(request)).await
    }

    /// Has the server forget an idle session.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_session(&self, request: v1::DeleteSessionRequest) -> Result<(), Error> {
        match self.unary(Call::DeleteSession(request)).await? {
            Answer::DeleteSession(_) => Ok(()),
            _ => Err(Error::Answer),
        }
    }

    /// Makes a session that stands where another stands or has stood.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fork_session(
        &self,
        request: v1::ForkSessionRequest,
    ) -> Result<v1::Session, Error> {
        self.session_call(Call::ForkSession(request)).await
    }

    /// Takes an idle session back to a position where it has stood.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rewind_session(
        &self,
        request: v1::RewindSessionRequest,
    ) -> Result<v1::Session, Error> {
        self.session_call(Call::RewindSession(request)).await
    }

    /// Brings a session to another device of the server; nobody notices who reads it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_session(
        &self,
        request: v1::MoveSessionRequest,
    ) -> Result<v1::Session, Error> {
        self.session_call(Call::MoveSession(request)).await
    }

    /// Gives a session a name, under which it can be forked; or takes it away.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn name_session(
        &self,
        request: v1::NameSessionRequest,
    ) -> Result<v1::Session, Error> {
        self.session_call(Call::NameSession(request)).await
    }

    /// An idle session as a sealed file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn export_session(
        &self,
        request: v1::ExportSessionRequest,
    ) -> Result<Vec<u8>, Error> {
        match &self.transport {
            Transport::Grpc(connection) => connection.export(request).await,
            Transport::Quic(connection) => connection.export(request).await,
        }
    }

    /// Makes a session of a sealed file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn import_session(
        &self,
        start: v1::ImportStart,
        file: Vec<u8>,
    ) -> Result<v1::Session, Error> {
        use v1::import_session_request::Message;

        let chunks = (0..file.len()).step_by(CHUNK_BYTES).map(move |at| {
            let data = file[at..file.len().min(at + CHUNK_BYTES)].to_vec();
            Message::Chunk(v1::Chunk { data })
        });
        let messages = std::iter::once(Message::Start(start))
            .chain(chunks)
            .map(|message| v1::ImportSessionRequest { message: Some(message) });
        match &self.transport {
            Transport::Grpc(connection) => connection.import(messages).await,
            Transport::Quic(connection) => connection.import(messages).await,
        }
    }

    /// What the server serves.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn models(&self) -> Result<Vec<v1::Model>, Error> {
        match self.unary(Call::ListModels(v1::ListModelsRequest {})).await? {
            Answer::ListModels(v1::ListModelsResponse { models }) => Ok(models),
            _ => Err(Error::Answer),
        }
    }

    async fn session_call(&self, call: Call) -> Result<v1::Session, Error> {
        match self.unary(call).await? {
            Answer::Session(session) => Ok(session),
            _ => Err(Error::Answer),
        }
    }

    /// Any call that is answered once. Each may be sent again: those that change something are known by their request's
    /// id, or change nothing more.
    async fn unary(&self, call: Call) -> Result<Answer, Error> {
        let mut backoff = Backoff::new(self.retry);
        loop {
            let answer = match &self.transport {
                Transport::Grpc(connection) => connection.unary(call.clone()).await,
                Transport::Quic(connection) => connection.unary(call.clone()).await,
            };
            match answer {
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => match backoff.wait(&error, now(), rand::random()) {
                    Some(wait) => sleep(wait).await,
                    None => return Err(error),
                },
                Ok(answer) => return Ok(answer),
            }
        }
    }
}

impl Generation {
    /// Asks the server to end the generation after the current step; `Finished` still comes.
    ///
    /// # Errors
    /// If the connection is lost, and asking again is of no use.
    pub async fn cancel(&mut self) -> Result<(), Error> {
        self.is_cancelled = true;
        let cancelled = match &mut self.attempt {
            Attempt::Running(responses) => responses.cancel().await,
            Attempt::Waiting(_) | Attempt::Over => Ok(()),
        };
        match cancelled {
            // It is asked for again, and then cancelled.
            Err(_) if self.client.retry != Retry::NEVER => Ok(()),
            cancelled => cancelled,
        }
    }

    /// Goes on after `error`, if that is of use.
    fn retry(&mut self, error: Error) -> Result<(), Error> {
        let Some(wait) = self.backoff.wait(&error, now(), rand::random()) else {
            self.attempt = Attempt::Over;
            return Err(error);
        };
        let (client, mut question) = (self.client.clone(), self.question.clone());
        if let (Question::Attach(request), Some(stitch)) = (&mut question, &self.stitch) {
            request.from_position = stitch.mark();
        }
        let is_cancelled = self.is_cancelled;
        self.attempt = Attempt::Waiting(Box::pin(async move {
            sleep(wait).await;
            let mut responses = client.ask(question).await?;
            if is_cancelled {
                responses.cancel().await?;
            }
            Ok(responses)
        }));
        Ok(())
    }

    /// What is new of an event.
    fn take(&mut self, event: Event) -> Result<Option<Event>, Error> {
        match (event, &mut self.stitch) {
            (Event::Accepted(accepted), None) => {
                let drawn_from = accepted.position + u64::from(accepted.prompt_tokens);
                self.stitch = Some(Stitch::of_answer(drawn_from));
                Ok(Some(Event::Accepted(accepted)))
            }
            (Event::Attached(attached), Some(stitch)) if !self.is_attached => {
                self.is_attached = true;
                stitch.again();
                Ok(Some(Event::Attached(attached)))
            }
            (Event::Accepted(_) | Event::Attached(_), Some(stitch)) => {
                stitch.again();
                Ok(None)
            }
            (Event::Delta(delta), Some(stitch)) => {
                let new = stitch.push(delta)?.map(Event::Delta);
                if new.is_some() {
                    self.backoff.progressed();
                }
                Ok(new)
            }
            (Event::Finished(finished), _) => Ok(Some(Event::Finished(finished))),
            (Event::Attached(_) | Event::Delta(_), None) => Err(Error::Answer),
        }
    }
}

impl Stream for Generation {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let response = match &mut this.attempt {
                Attempt::Over => return Poll::Ready(None),
                Attempt::Waiting(waiting) => match ready!(waiting.as_mut().poll(cx)) {
                    Ok(responses) => {
                        this.attempt = Attempt::Running(Box::new(responses));
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Attempt::Running(responses) => ready!(responses.poll_next(cx)),
            };
            let event = match response {
                // The server goes, and comes back: what it has not said yet is still to come.
                Ok(Event::Finished(finished)) if this.goes_on(&finished) => {
                    Err(Error::Interrupted { reason: "the server stopped".to_owned() })
                }
                Ok(event) => this.take(event),
                Err(error) => Err(error),
            };
            let event = match event {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(error) => match this.retry(error) {
                    Ok(()) => continue,
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
            };
            if matches!(event, Event::Finished(_)) {
                this.attempt = Attempt::Over;
            }
            return Poll::Ready(Some(Ok(event)));
        }
    }
}

impl Generation {
    /// Whether more of it can be had after it was said to be finished.
    fn goes_on(&self, finished: &v1::Finished) -> bool {
        let is_interrupted =
            matches!(finished.reason(), v1::FinishReason::Shutdown | v1::FinishReason::Interrupted);
        let can_ask = matches!(&self.question, Question::Start(start) if start.keep);
        is_interrupted && can_ask && !self.is_cancelled && self.client.retry != Retry::NEVER
    }
}

impl Responses {
    async fn cancel(&mut self) -> Result<(), Error> {
        match self {
            Self::Grpc(responses) => responses.cancel().await,
            Self::Quic(responses) => responses.cancel().await,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        let response = match self {
            Self::Grpc(responses) => ready!(Pin::new(responses).poll_next(cx)),
            Self::Quic(responses) => ready!(Pin::new(responses).poll_next(cx)),
        };
        Poll::Ready(match response {
            Some(Ok(v1::GenerateResponse { event })) => parse_event(event),
            Some(Err(error)) => Err(error),
            None => Err(Error::Interrupted { reason: "the generation is not finished".to_owned() }),
        })
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("question", &self.question).finish_non_exhaustive()
    }
}

/// Gives a request what it takes to be sent again without being run twice.
fn make_repeatable(start: &mut v1::Start) {
    if start.request_id.is_empty() {
        start.request_id = random_id();
    }
    if start.session_id.is_empty() {
        if start.keep {
            start.session_id = random_id();
            start.expected_position.get_or_insert(0);
        } else {
            // It is run again, and must say the same.
            let sampling = start.sampling.get_or_insert_default();
            sampling.seed.get_or_insert_with(rand::random);
        }
    }
}

/// A name that nothing else has: 122 random bits in the form of a UUID.
pub fn random_id() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xF << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let part = |range: std::ops::Range<usize>| &hex[range];
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

#[expect(clippy::disallowed_methods, reason = "a client waits in real time")]
fn now() -> Instant {
    Instant::now()
}

fn parse_event(event: Option<generate_response::Event>) -> Result<Event, Error> {
    match event {
        Some(generate_response::Event::Accepted(accepted)) => Ok(Event::Accepted(accepted)),
        Some(generate_response::Event::Attached(attached)) => Ok(Event::Attached(attached)),
        Some(generate_response::Event::Delta(delta)) => Ok(Event::Delta(delta)),
        Some(generate_response::Event::Finished(finished)) => Ok(Event::Finished(finished)),
        Some(generate_response::Event::Error(error)) => Err(quic::rejected(error)),
        None => Err(Error::Answer),
    }
}

pub(crate) fn parse_address(address: &str) -> Result<Address<'_>, Error> {
    let error =
        |problem: &str| Error::Address { address: address.to_owned(), problem: problem.to_owned() };
    let (scheme, authority) = address.split_once("://").ok_or_else(|| {
        error("is not of the form grpc://HOST:PORT, grpcs://HOST:PORT or quic://HOST:PORT")
    })?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port {
        return Err(error("lacks a host or a port"));
    }
    match scheme {
        "grpc" | "http" => Ok(Address::Grpc(authority)),
        "grpcs" | "https" => Ok(Address::Grpcs(authority)),
        "quic" => Ok(Address::Quic(authority)),
        _ => Err(error("has a scheme that is neither grpc nor grpcs nor quic")),
    }
}
