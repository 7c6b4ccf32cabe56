//! The responses to a stream, on their way to a client that may take its time to read them, but not for ever.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use aerie_proto::inference::{ModelInferRequest, ModelStreamInferResponse};
use tokio::{
    sync::mpsc,
    task::{JoinSet, yield_now},
};
use tokio_stream::{Stream, StreamExt as _};

use super::{Place, exchange::Exchange};
use crate::{
    admission::Reject,
    transport::{call::Call, turns::Broken},
};

/// What an [`Exchange`] says that is driven by a task of its own.
///
/// HTTP/2 asks for no response while its client reads none. Whether the stream is idle, and its caller who it was, is seen
/// to all the same. Dropping this ends the exchange.
#[derive(Debug)]
pub(super) struct Responses {
    told: mpsc::Receiver<ModelStreamInferResponse>,
    /// Ends when all that the stream held has been given back.
    driver: JoinSet<Result<(), Broken>>,
}

impl Responses {
    pub(super) fn new<R>(exchange: Exchange<R>, call: Call, place: Place) -> Self
    where
        R: Stream<Item = Result<ModelInferRequest, Broken>> + Send + Unpin + 'static,
    {
        let (client, told) = mpsc::channel(1);
        let mut driver = JoinSet::new();
        driver.spawn(drive(exchange, call, place, client));
        Self { told, driver }
    }
}

impl Stream for Responses {
    type Item = Result<ModelStreamInferResponse, Reject>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(response) = ready!(self.told.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(response)));
        }
        Poll::Ready(match ready!(self.driver.poll_join_next(cx)) {
            None | Some(Ok(Ok(()) | Err(Broken::Gone))) => None,
            Some(Ok(Err(Broken::Refused(reject)))) => Some(Err(reject)),
            Some(Err(_)) => Some(Err(Reject::Internal { what: "its stream broke off" })),
        })
    }
}

/// Runs an exchange to its end, for which it has a place.
async fn drive<R>(
    mut exchange: Exchange<R>,
    mut call: Call,
    _place: Place,
    client: mpsc::Sender<ModelStreamInferResponse>,
) -> Result<(), Broken>
where
    R: Stream<Item = Result<ModelInferRequest, Broken>> + Unpin,
{
    let ended = tell_all(&mut exchange, &client).await;
    match &ended {
        // Requests of a client that has reset its stream end like those of one that has no more. If so, this is dropped
        // here, once HTTP/2 has seen to it.
        Ok(()) => {
            yield_now().await;
            call.succeed();
        }
        Err(Broken::Gone) => {}
        Err(Broken::Refused(reject)) => call.refuse(reject),
    }
    ended
}

async fn tell_all<R>(
    exchange: &mut Exchange<R>,
    client: &mpsc::Sender<ModelStreamInferResponse>,
) -> Result<(), Broken>
where
    R: Stream<Item = Result<ModelInferRequest, Broken>> + Unpin,
{
    while let Some(response) = exchange.next().await {
        exchange.tell_to(client, response?).await?;
    }
    Ok(())
}
