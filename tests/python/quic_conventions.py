#!/usr/bin/env python3
"""What QUIC promises beside a handshake, asked of the server by aioquic.

Usage: quic_conventions.py quic://HOST:PORT CERTIFICATE CONNECTIONS

CONNECTIONS is how many a server has when it begins to ask for proofs of address. Ends with an
assertion if a promise is not kept.
"""

import asyncio
import contextlib
import socket
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.events import HandshakeCompleted
from quic_client import configuration, fields, frame, generate, read_frame

PROMPT = "Once upon a time there was a little girl who lived in a wood."


class Connection(QuicConnectionProtocol):
    """Remembers how its handshake ended."""

    early_data_accepted = None

    def quic_event_received(self, event):
        super().quic_event_received(event)
        if isinstance(event, HandshakeCompleted):
            self.early_data_accepted = event.early_data_accepted

    async def rebind(self):
        """Goes on from another port, as behind a NAT that has forgotten it."""
        other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("::", 0))
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=other)


class Server:
    def __init__(self, address, certificate):
        host, port = address.removeprefix("quic://").rsplit(":", 1)
        self.host, self.port, self.certificate = host, int(port), certificate
        self.tickets, self.tokens = [], []

    def connect(self, wait_connected=True, **settings):
        return connect(
            self.host,
            self.port,
            configuration=configuration(self.certificate, **settings),
            create_protocol=Connection,
            session_ticket_handler=self.tickets.append,
            token_handler=self.tokens.append,
            wait_connected=wait_connected,
        )


async def lists_models(connection):
    reader, writer = await connection.create_stream()
    writer.write(frame(b"\x2a\x00"))  # Call.list_models, which is empty
    writer.write_eof()
    [(number, _)] = fields(await read_frame(reader))
    return number == 4  # CallResponse.list_models


async def early_data_is_accepted_once(server):
    async with server.connect() as connection:
        assert await lists_models(connection)
    ticket = server.tickets[-1]
    async with server.connect(wait_connected=False, session_ticket=ticket) as connection:
        assert await lists_models(connection)
        assert connection.early_data_accepted
    async with server.connect(wait_connected=False, session_ticket=ticket) as connection:
        _, writer = await connection.create_stream()
        writer.write(frame(b"\x2a\x00"))
        await connection.wait_connected()
        assert not connection.early_data_accepted, "the ticket was used before"
        assert await lists_models(connection)


async def generation_survives_moves_and_new_keys(server):
    """With its first tokens each goes on from another port, with another connection id and new keys."""
    async with server.connect() as connection:
        expected = await generate(connection, PROMPT, 60)
        for _ in range(4):
            moves = []

            def move(_):
                if not moves:
                    moves.append(asyncio.create_task(connection.rebind()))
                    connection.change_connection_id()
                    connection.request_key_update()

            assert await generate(connection, PROMPT, 60, move) == expected
            await moves[0]
            # Keys may be renewed again when something under these was acknowledged (RFC 9001 6.5).
            await connection.ping()


async def more_streams_than_at_once_all_end(server):
    async with server.connect() as connection:
        answers = await asyncio.gather(*(lists_models(connection) for _ in range(600)))
        assert all(answers)


async def crowd_is_asked_to_prove_its_address(server, connections):
    async with contextlib.AsyncExitStack() as crowd:
        for _ in range(connections):
            await crowd.enter_async_context(server.connect())
        async with server.connect() as connection:
            assert connection._quic._retry_count == 1
            assert await lists_models(connection)
        # A proof that was given before spares the detour.
        async with server.connect(token=server.tokens[-1]) as connection:
            assert connection._quic._retry_count == 0
            assert await lists_models(connection)


async def main():
    address, certificate, connections = sys.argv[1:]
    server = Server(address, certificate)
    await early_data_is_accepted_once(server)
    await generation_survives_moves_and_new_keys(server)
    await more_streams_than_at_once_all_end(server)
    await crowd_is_asked_to_prove_its_address(server, int(connections))


if __name__ == "__main__":
    asyncio.run(main())
