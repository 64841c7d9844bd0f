"""HTTP/1.1 as uvicorn speaks it, with the bounds that it lacks: on the time for a request's head and for reading the
answer, and on the number of connections."""

import asyncio
import secrets
import struct
import sys
from asyncio.trsock import TransportSocket
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from enlarger.service.metrics import Metrics
from enlarger.service.middleware.access_log import record_refusal
from enlarger.service.middleware.security_headers import SECURITY_HEADERS
from enlarger.service.problems import Problem

WRITE_SECONDS = 60.0
MIN_READ_BYTES = 64 << 10  # bytes of an answer that a client takes in that time, at least
LINGER_RESET = struct.pack("ii", 1, 0)  # linger: on, for no time


class TimeoutProtocol(H11Protocol):
    """A connection that does not wait forever. Its other deadlines: uvicorn's between two requests, and those of
    `body_limits` for bodies."""

    header_seconds: ClassVar[float] = 10.0
    write_seconds: ClassVar[float] = WRITE_SECONDS
    max_connections: ClassVar[int] = 1024
    metrics: ClassVar[Metrics]
    open_connections: ClassVar[dict["TimeoutProtocol", None]] = {}  # what is without a request for longest first

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` says whenever something waits to be read
        self._start_header_timer()
        self.open_connections[self] = None
        if len(self.open_connections) > self.max_connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that has been without a request for longest: this one, where all others have one."""
        idle = next(one for one in self.open_connections if not one.is_responding)
        self.open_connections.pop(idle)
        if idle is not self:
            idle.transport.abort()
            return
        message = f"{self.max_connections} connections are open, which is all that may; come back in a moment"
        self._send_problem(Problem(503, "unavailable", message, retry_after=1))

    def on_response_complete(self) -> None:
        """A connection between two requests has been idle for less long than those that sent none."""
        super().on_response_complete()
        if self in self.open_connections:
            self.open_connections[self] = self.open_connections.pop(self)

    @property
    def is_responding(self) -> bool:
        """Whether a request is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # there is none before the first request
        return cycle is not None and not cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.pop(self, None)
        self._header_timer = _cancel_timer(self._header_timer)
        self._write_timer = _cancel_timer(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._start_header_timer()

    def _start_header_timer(self) -> None:
        """Let time run while a head is awaited, from the first byte on or from the start of the connection."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._header_timer = _cancel_timer(self._header_timer)
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._on_header_timeout)

    def _on_header_timeout(self) -> None:
        received_bytes = bool(self.conn.trailing_data[0])
        if received_bytes:
            message = f"the headers were not whole after {self.header_seconds:g} s; send them faster"
            self._send_problem(Problem(408, "request_timeout", message))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = _cancel_timer(self._write_timer)
        self._start_write_timer()

    def resume_writing(self) -> None:
        self._write_timer = _cancel_timer(self._write_timer)
        super().resume_writing()

    def _start_write_timer(self) -> None:
        buffered = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_seconds, self._on_write_timeout, buffered)

    def _on_write_timeout(self, buffered: int) -> None:
        """Drop a client that has read next to nothing for so long; one that reads slowly gets time again."""
        if buffered - self.transport.get_write_buffer_size() >= MIN_READ_BYTES:
            self._start_write_timer()
        else:
            socket: TransportSocket = self.transport.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, LINGER_RESET)  # what the system holds of the answer goes too
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too large a head, in our form."""
        error = sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._send_problem(
                Problem(431, "headers_too_large", "the headers are too large; send fewer or shorter ones")
            )
        else:
            self._send_problem(Problem(400, "invalid_request", "this is no valid HTTP/1.1; send it as RFC 9112 has it"))

    def _send_problem(self, problem: Problem) -> None:
        request_id = secrets.token_hex(16)
        if self.is_responding:  # its task must not write any more
            request_id = self.scope.get("state", {}).get("request_id", request_id)
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = problem.encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        extra = SECURITY_HEADERS | {"X-Request-Id": request_id} | problem.headers()
        headers += [(name.lower(), value) for name, value in extra.items()]
        try:
            for event in (
                h11.Response(status_code=problem.status, headers=headers),
                h11.Data(body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of an answer
            self.transport.abort()
        else:
            record_refusal(self.metrics, request_id, problem)
            self.transport.close()


def make_timeout_protocol(
    header_seconds: float, write_seconds: float, max_connections: int, metrics: Metrics
) -> type[TimeoutProtocol]:
    """The protocol with these deadlines, in seconds, and so many connections at a time."""
    bounds: dict[str, Any] = {"header_seconds": header_seconds, "write_seconds": write_seconds}
    connections: dict[str, Any] = {"max_connections": max_connections, "open_connections": {}, "metrics": metrics}
    return type("TimeoutProtocol", (TimeoutProtocol,), bounds | connections)


def _cancel_timer(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
