//! The protocol over gRPC: `inference.GRPCInferenceService`.
//!
//! Two calls take requests of any size. They are read with a codec of their own, which counts what a request holds before
//! it makes anything of it; the generated service has no place for that, and serves the others.

mod codec;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use aerie_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
};
use tokio::task::yield_now;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming, body,
    codegen::{Body, BoxFuture, Service as Serve, StdError, http},
    server::{self, ClientStreamingService, NamedService, StreamingService},
    service::interceptor::InterceptedService,
};

use self::codec::Counting;
use super::{Oip, Place, exchange::Exchange, responses::Responses};
use crate::{
    admission::Reject,
    service::Service,
    telemetry::metrics::Api,
    transport::{
        call::Call,
        grpc::{Guard, answer, broken, caller, principal, status},
        turns::Broken,
    },
};

/// Metadata of a client that wants a refusal to end its stream, as Triton calls it.
const STRICT: &str = "triton_grpc_error";

/// Paths of the calls whose requests are counted.
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// Bytes of a request of any other call: a name and a version.
const QUESTION_BYTES_MAX: usize = 4 << 10;

/// The protocol's service, to be added to the others.
pub(in crate::transport) fn service(
    service: &Service,
    guard: Guard,
) -> InterceptedService<Server, Guard> {
    let grpc = Grpc { oip: Oip::new(service.clone()) };
    let others =
        GrpcInferenceServiceServer::new(grpc.clone()).max_decoding_message_size(QUESTION_BYTES_MAX);
    InterceptedService::new(Server { grpc, others }, guard)
}

/// The service, as HTTP/2 asks it.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Server {
    grpc: Grpc,
    others: GrpcInferenceServiceServer<Grpc>,
}

impl NamedService for Server {
    const NAME: &'static str = GrpcInferenceServiceServer::<Grpc>::NAME;
}

impl<B> Serve<http::Request<B>> for Server
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let grpc = self.grpc.clone();
        match request.uri().path() {
            INFER => {
                Box::pin(
                    async move { Ok(grpc.codec().client_streaming(Infer(grpc), request).await) },
                )
            }
            STREAM => {
                Box::pin(
                    async move { Ok(grpc.codec().streaming(StreamInfer(grpc), request).await) },
                )
            }
            _ => self.others.call(request),
        }
    }
}

/// The front of the protocol's service.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Grpc {
    oip: Oip,
}

/// `ModelInfer`, whose one request is read here, where it is known whose it is.
struct Infer(Grpc);

/// `ModelStreamInfer`.
struct StreamInfer(Grpc);

impl ClientStreamingService<ModelInferRequest> for Infer {
    type Response = ModelInferResponse;
    type Future = BoxFuture<Response<ModelInferResponse>, Status>;

    fn call(&mut self, request: Request<Streaming<ModelInferRequest>>) -> Self::Future {
        let grpc = self.0.clone();
        Box::pin(async move {
            let mut call = grpc.begin();
            let answered = match grpc.read(request).await {
                Ok((request, place)) => {
                    let answered = grpc.model_infer(request).await;
                    drop(place);
                    answered
                }
                Err(broken) => {
                    grpc.oip.count(&broken);
                    Err(match &broken {
                        Broken::Gone => Status::cancelled("the client has gone"),
                        Broken::Refused(reject) => status(reject),
                    })
                }
            };
            call.close(&answered);
            answered
        })
    }
}

impl StreamingService<ModelInferRequest> for StreamInfer {
    type Response = ModelStreamInferResponse;
    type ResponseStream = Statuses;
    type Future = BoxFuture<Response<Statuses>, Status>;

    fn call(&mut self, request: Request<Streaming<ModelInferRequest>>) -> Self::Future {
        let grpc = self.0.clone();
        Box::pin(async move { grpc.model_stream_infer(request).await })
    }
}

impl Grpc {
    fn begin(&self) -> Call {
        Call::begin(Api::Oip, self.oip.service())
    }

    fn codec<T: prost::Message + 'static>(&self) -> server::Grpc<Counting<T>> {
        let bytes_max = self.oip.setup().config.message_bytes_max as usize;
        server::Grpc::new(Counting::new(self.oip.limits()))
            .max_decoding_message_size(bytes_max)
            .max_encoding_message_size(bytes_max)
    }

    /// The one request of a call, for which there is a place.
    async fn read(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<(Request<ModelInferRequest>, Place), Broken> {
        let caller = caller(&request);
        let place = self.oip.enter(caller.who)?;
        let (metadata, extensions, mut messages) = request.into_parts();
        let message = async {
            let problem = "is not there".to_owned();
            let absent = Broken::Refused(Reject::Invalid { field: "request", problem });
            settle(messages.message().await.transpose()).await.ok_or(absent)?
        };
        let message = self.oip.receive(&caller, message).await?;
        Ok((Request::from_parts(metadata, extensions, message), place))
    }
}

/// Tells what cannot be read from what a client that has gone leaves: tonic shows both alike, and HTTP/2 drops whoever
/// waits for the latter.
async fn settle<T>(came: Option<Result<T, Status>>) -> Option<Result<T, Broken>> {
    if !matches!(came, Some(Ok(_))) {
        yield_now().await;
    }
    came.map(|it| it.map_err(|status| broken(&status)))
}

type Statuses = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

#[tonic::async_trait]
impl GrpcInferenceService for Grpc {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        answer(self.begin(), Ok(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        answer(self.begin(), Ok(ServerReadyResponse { ready: self.oip.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.get_ref();
        let ready = self.oip.is_model_ready(name, version);
        answer(self.begin(), Ok(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        answer(self.begin(), Ok(Oip::server_metadata()))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.get_ref();
        answer(self.begin(), self.oip.model_metadata(name, version))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let who = principal(&request);
        let answered = self.oip.infer(who, request.into_inner()).await;
        answered.map(Response::new).map_err(|reject| status(&reject))
    }

    type ModelStreamInferStream = Statuses;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Statuses>, Status> {
        let (call, caller) = (self.begin(), caller(&request));
        let place = match self.oip.enter(caller.who) {
            Ok(place) => place,
            Err(reject) => {
                self.oip.service().count_reject(&reject);
                return answer(call, Err(reject));
            }
        };
        let strict = request.metadata().get(STRICT).is_some_and(|it| it.as_bytes() == b"true");
        let requests = request.into_inner().then(|it| settle(Some(it)));
        let requests = requests.filter_map(|it| it);
        let exchange = Exchange::new(self.oip.clone(), caller, Box::pin(requests), strict);
        let responses = Responses::new(exchange, call, place);
        Ok(Response::new(Box::pin(responses.map(|it| it.map_err(|reject| status(&reject))))))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let ModelStatisticsRequest { name, version } = request.get_ref();
        let model_stats = self.oip.statistics(name, version);
        answer(self.begin(), model_stats.map(|model_stats| ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let RepositoryIndexRequest { repository_name, ready } = request.get_ref();
        let index = match &**repository_name {
            "" => Ok(self.oip.index(*ready)),
            _ => {
                let problem = "is none that there is: models are in none".to_owned();
                Err(Reject::Invalid { field: "repository_name", problem })
            }
        };
        answer(self.begin(), index)
    }
}
