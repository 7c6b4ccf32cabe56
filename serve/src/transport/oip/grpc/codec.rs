//! Requests off the wire of gRPC, counted before they are decoded; responses as any message.

use std::marker::PhantomData;

use aerie_proto::inference::ModelInferRequest;
use bytes::Buf as _;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::oip::wire::{self, Limits};

/// Of calls whose requests are [`ModelInferRequest`]s, within limits.
#[derive(Debug)]
pub(super) struct Counting<T> {
    limits: Limits,
    response: PhantomData<T>,
}

/// Reads requests.
#[derive(Debug)]
pub(super) struct Reader(Limits);

/// Writes responses.
#[derive(Debug)]
pub(super) struct Writer<T>(PhantomData<T>);

impl<T> Counting<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, response: PhantomData }
    }
}

impl<T: Message + 'static> Codec for Counting<T> {
    type Encode = T;
    type Decode = ModelInferRequest;
    type Encoder = Writer<T>;
    type Decoder = Reader;

    fn encoder(&mut self) -> Writer<T> {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Reader {
        Reader(self.limits)
    }
}

impl Decoder for Reader {
    type Item = ModelInferRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<ModelInferRequest>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let decoded = wire::decode(&bytes, &self.0);
        decoded.map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

impl<T: Message> Encoder for Writer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, response: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        response.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}
