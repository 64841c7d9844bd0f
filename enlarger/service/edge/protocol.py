"""HTTP/1.1 as uvicorn speaks it, with the deadlines that it lacks: for a request's head, and for reading the answer."""

import asyncio
import json
import struct
from asyncio.trsock import TransportSocket
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from enlarger.service.faults import Fault

ANSWER_SECONDS = 60.0
RESET = struct.pack("ii", 1, 0)  # linger: on, for no time


class Patient(H11Protocol):
    """A connection that does not wait forever. Its other deadlines: uvicorn's between two requests, the guard's for
    bodies."""

    head_seconds: ClassVar[float] = 10.0
    answer_seconds: ClassVar[float] = ANSWER_SECONDS

    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` says whenever something waits to be read
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer = _stopped(self._head_timer)
        self._answer_timer = _stopped(self._answer_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def _time_head(self) -> None:
        """Let time run while a head is awaited, from the first byte on or from the start of the connection."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._head_timer = _stopped(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        said_something = bool(self.conn.trailing_data[0])
        if said_something:
            message = f"the headers were not whole after {self.head_seconds:g} s; send them faster"
            self._refuse(Fault(408, "request_timeout", message))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer_timer = _stopped(self._answer_timer)
        self._time_answer()

    def resume_writing(self) -> None:
        self._answer_timer = _stopped(self._answer_timer)
        super().resume_writing()

    def _time_answer(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._answer_timer = self.loop.call_later(self.answer_seconds, self._answer_is_late, left)

    def _answer_is_late(self, before: int) -> None:
        """Drop a client that has read nothing for so long; one that reads slowly gets time again."""
        if self.transport.get_write_buffer_size() < before:
            self._time_answer()
        else:
            socket: TransportSocket = self.transport.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET)  # what the system holds of the answer goes too
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has too large a head, in our form."""
        self._refuse(Fault(400, "invalid_request", "this is no valid HTTP/1.1, or its headers are too large"))

    def _refuse(self, fault: Fault) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # there is none before the first request
        if cycle is not None and not cycle.response_complete:  # its task must not write any more
            cycle.disconnected = True
            cycle.message_event.set()
        body = json.dumps(fault.body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (h11.Response(status_code=fault.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of an answer
            self.transport.abort()
        else:
            self.transport.close()


def patient(head_seconds: float, answer_seconds: float = ANSWER_SECONDS) -> type[Patient]:
    """The protocol with these deadlines, in seconds."""
    deadlines: dict[str, Any] = {"head_seconds": head_seconds, "answer_seconds": answer_seconds}
    return type("Patient", (Patient,), deadlines)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
