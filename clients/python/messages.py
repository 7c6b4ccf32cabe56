#!/usr/bin/env python3
"""Writes what `aerie.v1` has of the wire, from aerie.proto: a descriptor, and stubs for type checkers.

Usage: messages.py [--check]; needs grpcio-tools. With --check it writes nothing, and fails if what is there is not
what it would write.
"""

import argparse
import pathlib
import sys
import tempfile

from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTOS = HERE.parent / "proto" / "proto"
PROTO = "aerie/v1/aerie.proto"
MESSAGES = HERE / "aerie" / "v1"


def compile_proto(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """What protoc makes of aerie.proto, by where it belongs."""
    descriptor = folder / "aerie.binpb"
    flags = [f"--proto_path={PROTOS}", f"--descriptor_set_out={descriptor}", f"--pyi_out={folder}"]
    if protoc.main(["protoc", *flags, PROTO]) != 0:
        sys.exit("error: protoc refuses aerie.proto")
    stubs = (folder / "aerie/v1/aerie_pb2.pyi").read_bytes()
    return {MESSAGES / "aerie.binpb": descriptor.read_bytes(), MESSAGES / "__init__.pyi": stubs}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether they are fresh")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = compile_proto(pathlib.Path(folder))
    for path, content in files.items():
        if not args.check:
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            sys.exit(f"error: {path.relative_to(HERE)} is not what aerie.proto says; run {__file__}")


if __name__ == "__main__":
    main()
