"""A client of HTTP/3 for the tests: one request over a connection of its own.

    quic_client.py PORT PATH [--session FILE] [--save FILE] [--early] [--no-alpn] [--bad-finished]

Offers the session of FILE, and saves the last one that it is given. --early: the request is early
data. --no-alpn: no protocol is asked for, which servers have to refuse (RFC 9001, section 8.1).
--bad-finished: the Finished is wrong, which ends the handshake (RFC 8446, section 4.4.4).
Prints a line of JSON; "error" is there if there was no answer, and "ms" how long it took.
"""

import argparse
import asyncio
import json
import pickle
import ssl
import time

import aioquic.tls
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated

PATIENCE = 20                           # seconds


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.done = asyncio.get_running_loop().create_future()
        self.headers, self.body = {}, b""

    def ask(self, method, path):
        stream = self._quic.get_next_available_stream_id()
        self.http.send_headers(stream, [
            (b":method", method.encode()), (b":scheme", b"https"), (b":authority", b"localhost"),
            (b":path", path.encode())], end_stream=True)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated) and not self.done.done():
            self.done.set_exception(
                ConnectionError(f"{event.error_code:#x} {event.reason_phrase}"))
        for one in self.http.handle_event(event):
            if isinstance(one, HeadersReceived):
                self.headers = {name.decode(): value.decode() for name, value in one.headers}
            elif isinstance(one, DataReceived):
                self.body += one.data
            if getattr(one, "stream_ended", False) and not self.done.done():
                self.done.set_result(None)


def spoil_finished():
    push = aioquic.tls.push_finished
    aioquic.tls.push_finished = lambda buf, finished: push(
        buf, aioquic.tls.Finished(verify_data=bytes(len(finished.verify_data))))


async def visit(args):
    tickets = []
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=None if args.no_alpn else H3_ALPN,
        verify_mode=ssl.CERT_NONE, server_name="localhost")
    if args.session:
        with open(args.session, "rb") as file:
            configuration.session_ticket = pickle.load(file)
    said = {}
    began = time.monotonic()

    def ms():
        return round((time.monotonic() - began) * 1000)

    try:
        async with connect("127.0.0.1", args.port, configuration=configuration,
                           create_protocol=Client, session_ticket_handler=tickets.append,
                           wait_connected=not (args.early or args.no_alpn)) as client:
            client.ask("GET", args.path)
            await asyncio.wait_for(client.done, PATIENCE)
            said = {"status": int(client.headers[":status"]), "body": client.body.decode(),
                    "ms": ms()}
            # Early data may be answered before the handshake is through.
            quic = client._quic
            deadline = began + PATIENCE
            while time.monotonic() < deadline and (
                    not quic._handshake_complete or (args.save and not tickets)):
                await asyncio.sleep(0.01)
            said |= {"resumed": quic.tls.session_resumed, "early": quic.tls.early_data_accepted}
    except (ConnectionError, asyncio.TimeoutError) as error:
        said |= {"error": f"{type(error).__name__} {error}", "ms": ms()}
    if args.save and tickets:
        with open(args.save, "wb") as file:
            pickle.dump(tickets[-1], file)
    return said | {"tickets": len(tickets)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--session")
    parser.add_argument("--save")
    parser.add_argument("--early", action="store_true")
    parser.add_argument("--no-alpn", action="store_true")
    parser.add_argument("--bad-finished", action="store_true")
    args = parser.parse_args()
    if args.bad_finished:
        spoil_finished()
    print(json.dumps(asyncio.run(visit(args))))


if __name__ == "__main__":
    main()
