//! The QUIC half of the client.
//!
//! A server that was met before is sent harmless calls with the first packet, see
//! [`aerie_proto::early`]. A connection that nothing needs is let go; the next call has another.

mod known;
mod link;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use aerie_proto::{
    early::{self, Early},
    frame::{self, FRAME_BYTES_MAX},
    v1::{self, call, call_response::Result as Answer, generate_request::Message},
};
use prost::bytes::Bytes;
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};
use tokio::{io::ReadBuf, sync::Mutex};
use tokio_stream::Stream;
use tonic::Code;

pub(crate) use self::link::Place;
use self::link::{Link, Open};
use crate::{Credentials, Error, Trust, error::position};

/// Read from a stream at once: some tens of deltas.
const READ_BYTES: usize = 4096;
/// What may lie on one stream unread: a frame of any size.
#[expect(clippy::cast_possible_truncation, reason = "a frame's length is a u32")]
const FRAME_WINDOW: u32 = FRAME_BYTES_MAX as u32;
/// What may lie unread on all streams of a connection, so that some that are not read do not hold up
/// the others.
const RECEIVE_WINDOW: u32 = 256 * FRAME_WINDOW;
/// What streams are reset with: the client does not want the rest.
const RESET_CANCELLED: VarInt = VarInt::from_u32(1);

/// A way to a server; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    way: Arc<Way>,
}

#[derive(Debug)]
struct Way {
    place: Place,
    trust: Trust,
    credentials: Credentials,
    /// None once this client has left.
    link: Mutex<Option<Arc<Link>>>,
}

/// The events of one generation; dropping them resets the stream, which cancels it.
#[derive(Debug)]
pub(crate) struct Responses {
    send: SendStream,
    frames: Frames,
    /// Read while waiting for the server's first word.
    first: Option<v1::GenerateResponse>,
    _open: Open,
}

/// A call that the server has begun to answer.
struct Answered<M> {
    open: Open,
    send: SendStream,
    frames: Frames,
    first: M,
}

impl Connection {
    pub(crate) async fn open(
        place: Place,
        trust: &Trust,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let config = known::config(&place.authority, trust, credentials.certificate.as_ref())?;
        let link = Mutex::new(Some(Link::open(&place, config).await?));
        let way = Way { place, trust: trust.clone(), credentials: credentials.clone(), link };
        Ok(Self { way: Arc::new(way) })
    }

    pub(crate) async fn generate(&self, start: v1::Start) -> Result<Responses, Error> {
        let request = v1::GenerateRequest { message: Some(Message::Start(start)) };
        self.stream(call::Call::Generate(request)).await
    }

    pub(crate) async fn attach(&self, request: v1::AttachRequest) -> Result<Responses, Error> {
        self.stream(call::Call::Attach(request)).await
    }

    pub(crate) async fn export(&self, request: v1::ExportSessionRequest) -> Result<Vec<u8>, Error> {
        let answered = self.call(call::Call::ExportSession(request)).await?;
        let Answered { open: _open, mut send, mut frames, first } = answered;
        let _ = send.finish();
        let (mut file, mut next) = (Vec::new(), Some(first));
        while let Some(response) = next {
            match answer(Some(response))? {
                Answer::Chunk(chunk) => file.extend_from_slice(&chunk.data),
                _ => return Err(Error::Answer),
            }
            next = frames.next().await?;
        }
        Ok(file)
    }

    pub(crate) async fn import(
        &self,
        mut messages: impl Iterator<Item = v1::ImportSessionRequest> + Send,
    ) -> Result<v1::Session, Error> {
        let first = messages.next().ok_or(Error::Answer)?;
        let call = self.with_token(call::Call::ImportSession(first));
        let link = self.link().await?;
        link.established().await?;
        let (_open, mut send, mut frames) = open(&link, frame::encode(&call)?).await?;
        for message in messages {
            // The server may have refused it already: then it says why.
            if send.write_chunk(frame::encode(&message)?).await.is_err() {
                break;
            }
        }
        let _ = send.finish();
        match answer(frames.next().await?)? {
            Answer::Session(session) => Ok(session),
            _ => Err(Error::Answer),
        }
    }

    /// Any call that is answered once.
    pub(crate) async fn unary(&self, call: call::Call) -> Result<Answer, Error> {
        let Answered { mut send, first, .. } = self.call(call).await?;
        // Nothing more to say.
        let _ = send.finish();
        answer(Some(first))
    }

    async fn stream(&self, call: call::Call) -> Result<Responses, Error> {
        let Answered::<v1::GenerateResponse> { open, send, frames, first } =
            self.call(call).await?;
        if let Some(v1::generate_response::Event::Error(error)) = first.event {
            return Err(rejected(error));
        }
        Ok(Responses { send, frames, first: Some(first), _open: open })
    }

    pub(crate) async fn rebind(&self) -> Result<(), Error> {
        self.link().await?.rebind()
    }

    pub(crate) async fn close(self) {
        if let Some(link) = self.way.link.lock().await.take() {
            link.close().await;
        }
    }

    /// Calls, and waits for the first message of the answer.
    async fn call<M>(&self, call: call::Call) -> Result<Answered<M>, Error>
    where
        M: prost::Message + Default,
    {
        let is_harmless = early::policy(&call) == Early::Run;
        let frame = frame::encode(&self.with_token(call))?;
        let link = self.link().await?;
        let answered = call_on(&link, is_harmless, frame.clone()).await;
        // The server was restarted, and may have run the call before.
        let is_forgotten = link.connection.close_reason() == Some(ConnectionError::Reset);
        match answered {
            Err(Error::Interrupted { .. }) if is_forgotten && is_harmless => {
                call_on(&self.link().await?, is_harmless, frame).await
            }
            answered => answered,
        }
    }

    fn with_token(&self, call: call::Call) -> v1::Call {
        let token = self.way.credentials.token.clone().unwrap_or_default();
        v1::Call { call: Some(call), token }
    }

    /// The connection, or another if it was lost, as happens to one that is idle.
    async fn link(&self) -> Result<Arc<Link>, Error> {
        let Way { place, trust, credentials, link } = &*self.way;
        let mut link = link.lock().await;
        let known = link.as_ref().ok_or_else(|| interrupted("this client has left"))?;
        if known.connection.close_reason().is_none() {
            return Ok(Arc::clone(known));
        }
        let config = known::config(&place.authority, trust, credentials.certificate.as_ref())?;
        let another = Link::open(place, config).await?;
        *link = Some(Arc::clone(&another));
        Ok(another)
    }
}

/// Calls over `link`: before its handshake has ended, if that does no harm.
async fn call_on<M>(link: &Arc<Link>, is_harmless: bool, frame: Bytes) -> Result<Answered<M>, Error>
where
    M: prost::Message + Default,
{
    if is_harmless && link.is_early() {
        let failed = async {
            match link.established().await {
                Ok(_) => std::future::pending().await,
                Err(error) => error,
            }
        };
        let answered = tokio::select! {
            answered = attempt(link, frame.clone()) => answered,
            error = failed => return Err(error),
        };
        // What the server did not want early it has not read either, and is sent again below.
        if answered.is_ok() || link.established().await? {
            return answered;
        }
    }
    link.established().await?;
    attempt(link, frame).await
}

/// Sends the call and waits for the first message of the answer.
async fn attempt<M>(link: &Arc<Link>, frame: Bytes) -> Result<Answered<M>, Error>
where
    M: prost::Message + Default,
{
    let (open, send, mut frames) = open(link, frame).await?;
    let first = frames.next().await?.ok_or(Error::Answer)?;
    Ok(Answered { open, send, frames, first })
}

/// Opens a stream and sends the call.
async fn open(link: &Arc<Link>, frame: Bytes) -> Result<(Open, SendStream, Frames), Error> {
    let open = link.begin_call();
    let (mut send, receive) = link.connection.open_bi().await.map_err(interrupted)?;
    send.write_chunk(frame).await.map_err(interrupted)?;
    Ok((open, send, Frames { receive, decoder: frame::Decoder::default() }))
}

impl Responses {
    pub(crate) async fn cancel(&mut self) -> Result<(), Error> {
        let message = Some(Message::Cancel(v1::Cancel {}));
        let frame = frame::encode(&v1::GenerateRequest { message })?;
        self.send.write_chunk(frame).await.map_err(interrupted)
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        // Both fail only when the stream is over already.
        let _ = self.send.reset(RESET_CANCELLED);
        let _ = self.frames.receive.stop(RESET_CANCELLED);
    }
}

impl Stream for Responses {
    type Item = Result<v1::GenerateResponse, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        self.frames.poll_next(cx).map(Result::transpose)
    }
}

/// The frames that come on one stream.
#[derive(Debug)]
struct Frames {
    receive: RecvStream,
    decoder: frame::Decoder,
}

impl Frames {
    async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next<M>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Error>>
    where
        M: prost::Message + Default,
    {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(self.receive.poll_read_buf(cx, &mut buffer)).map_err(interrupted)?;
            if buffer.filled().is_empty() {
                self.decoder.finish()?;
                return Poll::Ready(Ok(None));
            }
            self.decoder.push(buffer.filled());
        }
    }
}

/// What a call came to.
fn answer(response: Option<v1::CallResponse>) -> Result<Answer, Error> {
    match response.ok_or(Error::Answer)?.result {
        Some(Answer::Error(error)) => Err(rejected(error)),
        Some(answer) => Ok(answer),
        None => Err(Error::Answer),
    }
}

/// What the server says in an error of its own.
pub(crate) fn rejected(error: v1::Error) -> Error {
    let v1::Error { code, message, retry_after_ms, reason, metadata } = error;
    Error::Rejected {
        code: i32::try_from(code).map_or(Code::Unknown, Code::from_i32),
        message,
        retry_after: retry_after_ms.map(Duration::from_millis),
        reason,
        position: position(&metadata),
    }
}

fn interrupted(error: impl ToString) -> Error {
    Error::Interrupted { reason: error.to_string() }
}
