#!/usr/bin/env python3
"""Asks a server what any gRPC tool would: reflection, health, a generation.

Usage: grpc_conventions.py HOST:PORT CLIENT PROMPT TOKENS

CLIENT is the folder of the example client, which is run as well. Prints the ids of the tokens.
"""

import sys

import grpc
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


def main():
    address, client_folder, prompt, tokens = sys.argv[1:]
    sys.path.insert(0, client_folder)
    import aerie

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

    ids = []
    with aerie.Client(address) as client:
        for event in client.generate(prompt, max_tokens=int(tokens), sampling={"temperature": 0.0}):
            if event.DESCRIPTOR.name == "Delta":
                ids.extend(event.ids)
    print(*ids)


if __name__ == "__main__":
    main()
