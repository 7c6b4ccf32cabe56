//! The messages that come on a stream.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{self, Poll, ready},
};

use aerie_proto::frame::{self, FrameError};
use quinn::RecvStream;
use tokio::io::ReadBuf;
use tokio_stream::Stream;

use super::{super::turns::Broken, handshake::Confirmation};
use crate::admission::Reject;

/// Read from a stream at once; requests are a few hundred bytes.
const READ_BYTES: usize = 4096;

/// The frames of one stream.
pub(super) struct Frames {
    receive: RecvStream,
    decoder: frame::Decoder,
    /// What the next frame waits for.
    held: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
}

impl Frames {
    pub(super) fn new(receive: RecvStream) -> Self {
        Self { receive, decoder: frame::Decoder::default(), held: None }
    }

    /// Gives no frame before the handshake has ended.
    pub(super) fn hold(&mut self, confirmation: Confirmation) {
        self.held = Some(Box::pin(confirmation.confirmed()));
    }

    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> Option<Result<M, Broken>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next<M>(&mut self, cx: &mut task::Context<'_>) -> Poll<Option<Result<M, Broken>>>
    where
        M: prost::Message + Default,
    {
        if let Some(held) = &mut self.held {
            if !ready!(held.as_mut().poll(cx)) {
                return Poll::Ready(Some(Err(Broken::Gone)));
            }
            self.held = None;
        }
        loop {
            match self.decoder.message() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(refused(&error)))),
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            if ready!(self.receive.poll_read_buf(cx, &mut buffer)).is_err() {
                return Poll::Ready(Some(Err(Broken::Gone)));
            }
            if buffer.filled().is_empty() {
                let end = self.decoder.finish().map_err(|error| refused(&error));
                return Poll::Ready(end.err().map(Err));
            }
            self.decoder.push(buffer.filled());
        }
    }
}

/// The messages of a stream after the first.
pub(super) struct Requests<M> {
    frames: Frames,
    message: PhantomData<fn() -> M>,
}

impl<M> Requests<M> {
    pub(super) fn new(frames: Frames) -> Self {
        Self { frames, message: PhantomData }
    }
}

impl<M: prost::Message + Default> Stream for Requests<M> {
    type Item = Result<M, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_next(cx)
    }
}

fn refused(error: &FrameError) -> Broken {
    Broken::Refused(Reject::Invalid { field: "frame", problem: format!("is refused: {error}") })
}
