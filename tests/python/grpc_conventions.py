#!/usr/bin/env python3
"""Asks a server what any gRPC tool would: reflection, health, a generation.

Usage: grpc_conventions.py HOST:PORT PROMPT TOKENS

The messages of the generation are those that the server tells by reflection. Prints the ids of the tokens.
"""

import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICES = {
    "aerie.v1.Inference",
    "aerie.v1.Models",
    "aerie.v1.Sessions",
    "grpc.health.v1.Health",
}


def generate(channel, prompt, tokens):
    """Ids of greedy tokens that follow a prompt."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def message(name):
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"aerie.v1.{name}"))

    call = channel.stream_stream(
        "/aerie.v1.Inference/Generate",
        request_serializer=lambda it: it.SerializeToString(),
        response_deserializer=message("GenerateResponse").FromString,
    )
    start = message("Start")(text=prompt, max_tokens=tokens)
    # The end of the requests tells that no other turn follows this one.
    responses = call(iter([message("GenerateRequest")(start=start)]))
    return [id for response in responses for id in response.delta.ids]


def main():
    address, prompt, tokens = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert SERVICES <= listed, f"reflection lists {listed}"

        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for service in ("", "aerie.v1.Inference"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(request).status == serving, service
            assert next(health.Watch(request)).status == serving, service
        try:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
            raise AssertionError("an unknown service is healthy")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error

        print(*generate(channel, prompt, int(tokens)))


if __name__ == "__main__":
    main()
