#!/usr/bin/env python3
"""Streams text from an Aerie server over gRPC, in one file without generated code.

The server tells its own messages by reflection, so this keeps working as they grow.

    pip install -r requirements.txt
    ./aerie.py 'Once upon a time' --tokens 64
    ./aerie.py 'Once upon a time' --keep              # prints the session's id
    ./aerie.py ' and then' --session ID               # goes on with it
"""

import argparse
import sys

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


class Client:
    """One connection; usable as a context manager."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def message(self, name):
        """The class of a message of `aerie.v1`."""
        descriptor = self.pool.FindMessageTypeByName(f"aerie.v1.{name}")
        return message_factory.GetMessageClass(descriptor)

    def generate(self, text, **fields):
        """Yields the events of one generation: accepted, deltas, finished.

        `fields` are those of `Start`; `sampling` may be a dict.
        """
        start = self.message("Start")(text=text, **fields)
        call = self.channel.stream_stream(
            "/aerie.v1.Inference/Generate",
            request_serializer=lambda it: it.SerializeToString(),
            response_deserializer=self.message("GenerateResponse").FromString,
        )
        # The end of the requests tells that no other turn follows this one.
        for response in call(iter([self.message("GenerateRequest")(start=start)])):
            yield getattr(response, response.WhichOneof("event"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--server", default="127.0.0.1:7447", metavar="HOST:PORT")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--session", default="", help="go on with this session")
    parser.add_argument("--keep", action="store_true", help="have the server keep the session")
    args = parser.parse_args()

    sampling = {"temperature": args.temperature}
    if args.seed is not None:
        sampling["seed"] = args.seed
    session = None
    try:
        with Client(args.server) as client:
            events = client.generate(
                args.prompt,
                session_id=args.session,
                keep=args.keep,
                max_tokens=args.tokens,
                sampling=sampling,
            )
            for event in events:
                match event.DESCRIPTOR.name:
                    case "Accepted":
                        session = event.session_id
                    case "Delta":
                        print(event.text, end="", flush=True)
    except grpc.RpcError as error:
        sys.exit(f"error: {error.details()} ({error.code().name})")
    print()
    if args.keep:
        print(f"session {session}", file=sys.stderr)


if __name__ == "__main__":
    main()
