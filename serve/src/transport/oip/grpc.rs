//! The protocol over gRPC: `inference.GRPCInferenceService`.

use std::pin::Pin;

use aerie_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming,
    service::interceptor::{InterceptedService, Interceptor},
};

use super::{Oip, Place, exchange::Exchange};
use crate::{
    service::Service,
    telemetry::metrics::Api,
    transport::{
        call::Call,
        grpc::{Guard, answer, broken, caller, principal, status},
    },
};

/// Metadata of a client that wants a refusal to end its stream, as Triton calls it.
const STRICT: &str = "triton_grpc_error";

/// The protocol's service, to be added to the others.
pub(in crate::transport) fn service(
    service: &Service,
    guard: Guard,
) -> InterceptedService<GrpcInferenceServiceServer<Grpc>, Gate> {
    let oip = Oip::new(service.clone());
    let bytes_max = oip.setup().config.message_bytes_max as usize;
    let server = GrpcInferenceServiceServer::new(Grpc { oip: oip.clone() })
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(bytes_max);
    InterceptedService::new(server, Gate { guard, oip })
}

/// Lets in who has a token, and as many at once as there is room for, before anything is read.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Gate {
    guard: Guard,
    oip: Oip,
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = self.guard.call(request)?;
        let place = self.oip.enter().map_err(|reject| status(&reject))?;
        request.extensions_mut().insert(place);
        Ok(request)
    }
}

/// The front of the protocol's service.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Grpc {
    oip: Oip,
}

impl Grpc {
    fn begin(&self) -> Call {
        Call::begin(Api::Oip, self.oip.service())
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

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
        let (call, who, place) = (self.begin(), principal(&request), place(&request));
        let answered = self.oip.infer(who, request.into_inner()).await;
        drop(place);
        answer(call, answered)
    }

    type ModelStreamInferStream = Responses;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let (caller, place) = (caller(&request), place(&request));
        let strict = request.metadata().get(STRICT).is_some_and(|it| it.as_bytes() == b"true");
        let requests = request.into_inner().map(|it| it.map_err(|status| broken(&status)));
        let responses = Exchange::new(self.oip.clone(), caller, requests, strict);
        let responses = responses.map(move |it| {
            // It lasts as long as the stream does.
            let _ = &place;
            it.map_err(|reject| status(&reject))
        });
        Ok(Response::new(Box::pin(responses)))
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
        answer(self.begin(), Ok(self.oip.index(request.get_ref().ready)))
    }
}

fn place<T>(request: &Request<T>) -> Place {
    request.extensions().get::<Place>().expect("no call comes past its gate").clone()
}
