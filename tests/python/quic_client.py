#!/usr/bin/env python3
"""Streams a generation over QUIC with aioquic: a stack that shares no code with the server's.

Usage: quic_client.py quic://HOST:PORT CERTIFICATE PROMPT TOKENS

Messages are read and written here by hand, field number by field number, so that the wire is held
to its document and not to generated code. Prints the ids of the tokens, one line.
"""

import asyncio
import ssl
import sys

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number, value):
    """A length-delimited field, or a varint one where `value` is an integer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """The fields of a message as (number, value)."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        match key & 7:
            case 0:
                value, at = read_varint(data, at)
            case 1:
                value, at = data[at : at + 8], at + 8
            case 2:
                size, at = read_varint(data, at)
                value, at = data[at : at + size], at + size
            case wire_type:
                raise ValueError(f"wire type {wire_type}")
        yield key >> 3, value


def packed(data):
    at = 0
    while at < len(data):
        value, at = read_varint(data, at)
        yield value


def configuration(certificate, **settings):
    """TLS that trusts the certificate and speaks Aerie."""
    it = QuicConfiguration(
        is_client=True, alpn_protocols=["aerie/1"], server_name="localhost", **settings
    )
    it.load_verify_locations(certificate)
    it.verify_mode = ssl.CERT_REQUIRED
    return it


def frame(message):
    return len(message).to_bytes(4, "big") + message


async def read_frame(reader):
    size = int.from_bytes(await reader.readexactly(4), "big")
    return await reader.readexactly(size)


async def generate(connection, prompt, tokens, each=lambda n_tokens: None):
    """Ids of a greedy generation; calls `each` with their number so far whenever some have come."""
    reader, writer = await connection.create_stream()
    start = field(4, prompt.encode()) + field(7, tokens)  # Start.text, Start.max_tokens
    writer.write(frame(field(1, field(1, start))))  # Call.generate, GenerateRequest.start
    writer.write_eof()

    ids = []
    while True:
        for event, body in fields(await read_frame(reader)):
            if event == 2:  # GenerateResponse.delta
                for number, value in fields(body):
                    if number == 2:  # Delta.ids
                        ids.extend(packed(value))
                each(len(ids))
            elif event == 3:  # GenerateResponse.finished
                return ids
            elif event == 4:  # GenerateResponse.error
                raise SystemExit(f"error: {body!r}")


async def run(host, port, certificate, prompt, tokens):
    async with connect(host, port, configuration=configuration(certificate)) as connection:
        return await generate(connection, prompt, tokens)


def main():
    address, certificate, prompt, tokens = sys.argv[1:]
    host, port = address.removeprefix("quic://").rsplit(":", 1)
    ids = asyncio.run(run(host, int(port), certificate, prompt, int(tokens)))
    print(*ids)


if __name__ == "__main__":
    main()
