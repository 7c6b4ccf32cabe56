//! The one API: calls in, answers and events out, whatever carries them.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use aerie_proto::v1::{self, call::Call, call_response::Result as Answer, generate_response};
use tokio_stream::Stream;

use crate::{Error, Trust, grpc, quic};

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
}

#[derive(Clone, Debug)]
enum Transport {
    Grpc(grpc::Connection),
    Quic(quic::Connection),
}

/// A running generation: a stream of [`Event`]s that ends after `Finished` or an error.
///
/// Dropping it cancels the generation, unless its request has an id and its session is kept: that one goes on for a while
/// without a reader, to be asked for again or attached to. [`Generation::cancel`] ends any.
pub struct Generation {
    responses: Responses,
    is_over: bool,
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
    Quic(&'a str),
}

impl Client {
    /// Connects to `grpc://HOST:PORT` or `quic://HOST:PORT`.
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
        let transport = match parse_address(address)? {
            Address::Grpc(authority) => {
                Transport::Grpc(grpc::Connection::open(address, authority).await?)
            }
            Address::Quic(authority) => {
                Transport::Quic(quic::Connection::open(address, authority, trust).await?)
            }
        };
        Ok(Self { transport })
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

    /// Begins a generation, and returns when the server has answered.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the server refuses it; a later failure is an item of the stream.
    pub async fn generate(&self, start: v1::Start) -> Result<Generation, Error> {
        let responses = match &self.transport {
            Transport::Grpc(connection) => Responses::Grpc(connection.generate(start).await?),
            Transport::Quic(connection) => Responses::Quic(connection.generate(start).await?),
        };
        Ok(Generation { responses, is_over: false })
    }

    /// Follows a session from a position on: what it has said since, then what it says as it comes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn attach(&self, id: &str, from_position: u64) -> Result<Generation, Error> {
        let request = v1::AttachRequest { session_id: id.to_owned(), from_position };
        let responses = match &self.transport {
            Transport::Grpc(connection) => Responses::Grpc(connection.attach(request).await?),
            Transport::Quic(connection) => Responses::Quic(connection.attach(request).await?),
        };
        Ok(Generation { responses, is_over: false })
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

    async fn unary(&self, call: Call) -> Result<Answer, Error> {
        match &self.transport {
            Transport::Grpc(connection) => connection.unary(call).await,
            Transport::Quic(connection) => connection.unary(call).await,
        }
    }
}

impl Generation {
    /// Asks the server to end the generation after the current step; `Finished` still comes.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn cancel(&mut self) -> Result<(), Error> {
        match &mut self.responses {
            Responses::Grpc(responses) => responses.cancel().await,
            Responses::Quic(responses) => responses.cancel().await,
        }
    }
}

impl Stream for Generation {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let response = match &mut self.responses {
            Responses::Grpc(responses) => ready!(Pin::new(responses).poll_next(cx)),
            Responses::Quic(responses) => ready!(Pin::new(responses).poll_next(cx)),
        };
        let event = match response {
            Some(Ok(v1::GenerateResponse { event })) => parse_event(event),
            Some(Err(error)) => Err(error),
            None => Err(Error::Interrupted { reason: "the generation is not finished".to_owned() }),
        };
        self.is_over = matches!(event, Ok(Event::Finished(_)) | Err(_));
        Poll::Ready(Some(event))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("is_over", &self.is_over).finish_non_exhaustive()
    }
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
    let (scheme, authority) = address
        .split_once("://")
        .ok_or_else(|| error("is not of the form grpc://HOST:PORT or quic://HOST:PORT"))?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port {
        return Err(error("lacks a host or a port"));
    }
    match scheme {
        "grpc" | "http" => Ok(Address::Grpc(authority)),
        "quic" => Ok(Address::Quic(authority)),
        _ => Err(error("has a scheme that is neither grpc nor quic")),
    }
}
