"""Decoding pictures in processes apart: one that hangs, crashes or eats memory costs its own picture and no more."""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.settings import Bounds, Settings
from enlarger.service.uploads.fair_slots import FairSlots
from enlarger.service.uploads.masks import Fit
from enlarger.service.uploads.messages import (
    ESCAPED_BYTES,
    MAX_REPLY_BYTES,
    UNREADABLE_BODY,
    DecodedImage,
    DecoderCrashed,
    DecodeRequest,
    DecoderReady,
    DecoderReply,
    DecodingFailed,
    ParsedBody,
    ParseRequest,
)

NUM_PROCESSES = 2
DECODER_ARGV = (sys.executable, "-m", "enlarger.service.uploads.decoder_process")
KEPT_VARIABLES = {
    *("PATH", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
}
MAX_IMAGES_PER_PROCESS = 200  # that one decodes before a new one takes its place
PNG_BYTES_PER_PIXEL = 9  # of one that does not compress
START_SECONDS = 60  # for a process to import what it needs
REPLIES: TypeAdapter[DecoderReply] = TypeAdapter(Annotated[DecoderReply, Field(discriminator="kind")])
log = logging.getLogger("enlarger.service.decoder")


class DecoderDied(Exception):
    """A decoder process that ended, or whose reply is none."""


def decoder_environment() -> dict[str, str]:
    """What a decoder needs to find Python and its libraries, and no more: the rest may hold secrets."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


async def _spawn_process(bounds: Bounds) -> Process:
    return await asyncio.create_subprocess_exec(
        *DECODER_ARGV,
        str(max(bounds.pixels, bounds.upscale_pixels)),
        str(max(bounds.image, bounds.mask, PNG_BYTES_PER_PIXEL * bounds.output_pixels)),  # an edit's picture is fitted
        stdin=PIPE,
        stdout=PIPE,
        limit=MAX_REPLY_BYTES + ESCAPED_BYTES * bounds.json_body,
        env=decoder_environment(),
        start_new_session=True,  # Ctrl-C is for the server
    )


class DecoderProcess:
    """A decoder process, one picture at a time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.num_decoded = 0
        self.confinement: tuple[str, ...] = ()  # what keeps it from files and the network

    @classmethod
    async def start(cls, bounds: Bounds) -> "DecoderProcess":
        """Start one and wait until it is ready. Raises DecoderDied."""
        starting = asyncio.create_task(_spawn_process(bounds))
        try:
            decoder = cls(await asyncio.shield(starting))
        except asyncio.CancelledError:  # between fork and here nobody would end it
            await cls(await starting).kill()
            raise
        try:
            ready = await decoder.read_reply(START_SECONDS)
            if not isinstance(ready, DecoderReady):
                raise DecoderDied("it began with something else")
            decoder.confinement = ready.confinement
        except BaseException:
            await decoder.kill()
            raise
        return decoder

    async def request(self, request: DecodeRequest | ParseRequest, seconds: float) -> DecoderReply:
        """The reply to one request. Raises DecoderDied and TimeoutError; the process is of no use then."""
        self.num_decoded += 1
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")
            await self.process.stdin.drain()
        except OSError as error:
            raise DecoderDied("it had ended before") from error
        return await self.read_reply(seconds)

    async def read_reply(self, seconds: float) -> DecoderReply:
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), seconds)
            return REPLIES.validate_python(json.loads(line))  # pydantic's JSON knows no half surrogate pairs
        except ValueError as error:  # nothing, half a line, one too long, or no reply
            raise DecoderDied("it ended without an answer") from error

    async def kill(self) -> None:
        """Kill the process, if it still runs, and wait for it."""
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses where the whole group has ended
            os.killpg(self.process.pid, signal.SIGKILL)  # the process of a picture too
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self.process.communicate()


class DecoderPool:
    """A few warm processes that decode what users send."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = settings.bounds
        has_many_owners = len(settings.keys) > 1
        self._num_processes = NUM_PROCESSES + has_many_owners  # one owner never has them all
        self._slots = FairSlots(self._num_processes, NUM_PROCESSES)
        self.confinement: tuple[str, ...] = ()  # what keeps decoders from files and the network
        self._idle: asyncio.Queue[DecoderProcess | None] = asyncio.Queue()  # None: one could not be started
        self._processes: set[DecoderProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the processes. Raises DecoderDied if they cannot be."""
        self._idle = asyncio.Queue()
        starting = (self._start_process() for _ in range(self._num_processes))
        for number, started in enumerate(await asyncio.gather(*starting, return_exceptions=True)):
            if isinstance(started, BaseException):
                await self.stop()
                raise started
            started.num_decoded = number * MAX_IMAGES_PER_PROCESS // self._num_processes  # not replaced all at once
            self.confinement = started.confinement
            self._idle.put_nowait(started)
        _report_confinement(self.confinement)

    async def stop(self) -> None:
        """End the processes, whatever they do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(decoder.kill() for decoder in self._processes))
        self._processes.clear()

    async def decode_image(
        self, source: Path, out: Path, *, max_pixels: int, param: str = "image", fit: Fit | None = None, owner: str = ""
    ) -> DecodedImage:
        """Write a file's picture, upright, of at most `max_pixels`, as a PNG. Raises ProblemError."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode(self._request("picture", source, out, param, fit, max_pixels=max_pixels), owner)

    async def decode_mask(
        self,
        source: Path,
        out: Path,
        *,
        size: tuple[int, int],
        mode: str = "auto",
        resize: bool = False,
        fit: Fit | None = None,
        param: str = "mask",
        owner: str = "",
    ) -> DecodedImage:
        """Write a file's mask as a grey PNG, white is repainted. Raises ProblemError.

        `size` is the picture's before its fit, `DecodedImage.original_size`; `fit` is the picture's. `mode` as in
        `read_mask`.
        """
        self._check_bytes(source, self._bounds.mask, param)
        request = self._request("mask", source, out, param, fit)
        return await self._decode(replace(request, size=size, mode=mode, resize=resize), owner)

    async def decode_alpha_mask(
        self, source: Path, out: Path, *, fit: Fit | None = None, param: str = "image", owner: str = ""
    ) -> DecodedImage:
        """Write what is transparent of a picture as a mask. Raises ProblemError if nothing is."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode(self._request("alpha", source, out, param, fit), owner)

    async def read_texts(self, source: Path, owner: str = "") -> dict[str, str]:
        """The texts in a picture's file. Raises ProblemError."""
        self._check_bytes(source, self._bounds.image, "image")
        request = self._request("texts", source, source.with_suffix(".texts"), "image", None)
        return (await self._decode(request, owner)).texts

    def _check_bytes(self, source: Path, max_bytes: int, param: str) -> None:
        size = source.stat().st_size
        if size > max_bytes:
            text = (
                f"{param}: is {size:,} bytes, at most {max_bytes:,} are read; shrink the picture or compress it better"
            )
            raise problem_error(400, "image_file_too_large", text, param)

    def _request(
        self,
        kind: Literal["picture", "mask", "alpha", "texts"],
        source: Path,
        out: Path,
        param: str,
        fit: Fit | None,
        max_pixels: int | None = None,
    ) -> DecodeRequest:
        limit = self._bounds.pixels if max_pixels is None else max_pixels
        return DecodeRequest(kind, str(source), str(out), param, limit, self._bounds.decode_seconds, fit)

    async def parse_body(self, request: ParseRequest, owner: str) -> ParsedBody:
        """Take a body apart. Raises ProblemError."""
        try:
            reply = await self._reply(request, owner)
        except (DecoderDied, TimeoutError):
            raise ProblemError(UNREADABLE_BODY) from None
        assert isinstance(reply, ParsedBody)
        return reply

    async def _decode(self, request: DecodeRequest, owner: str) -> DecodedImage:
        """What a process makes of a picture."""
        try:
            reply = await self._reply(request, owner)
        except TimeoutError:
            found = f"{request.param}: took longer than {request.seconds:g} seconds to decode"
            text = f"{found}; shrink it, or save it anew"
        except DecoderDied:
            text = f"{request.param}: cannot be decoded, the decoder failed on it; save it anew with another program"
        else:
            assert isinstance(reply, DecodedImage)
            return reply
        raise problem_error(400, "image_parse_error", text, request.param)

    async def _reply(self, request: DecodeRequest | ParseRequest, owner: str) -> DecodedImage | ParsedBody:
        """A process' reply, once it is the owner's turn. What cost two of them is given up: one may be an accident.
        Raises DecoderDied, TimeoutError and ProblemError."""
        try:
            async with self._slots.hold(owner):
                reply = await self._reply_once(request)
        except DecoderDied as error:
            log.warning("a decoder was lost over an upload: %s", error)
            async with self._slots.hold(owner):
                reply = await self._reply_once(request)
        if isinstance(reply, DecodingFailed):
            raise ProblemError(reply.problem)
        if isinstance(reply, DecoderCrashed):
            log.warning("the process of an upload ended with status %s", reply.status)
            raise DecoderDied("its process ended without an answer")
        assert not isinstance(reply, DecoderReady)
        return reply

    async def _reply_once(self, request: DecodeRequest | ParseRequest) -> DecoderReply:
        """A process' reply. One that failed, or was left in the middle, is replaced."""
        decoder, succeeded = await self._idle.get(), False
        try:
            if decoder is None or decoder.process.returncode is not None:
                decoder = await self._restart_process(decoder)
            reply = await decoder.request(request, request.seconds)
            succeeded = True
            return reply
        finally:
            if succeeded and decoder is not None and decoder.num_decoded < MAX_IMAGES_PER_PROCESS:
                self._idle.put_nowait(decoder)
            else:
                self._run_in_background(self._replace(decoder))

    async def _start_process(self) -> DecoderProcess:
        decoder = await DecoderProcess.start(self._bounds)
        self._processes.add(decoder)
        return decoder

    async def _restart_process(self, decoder: DecoderProcess | None) -> DecoderProcess:
        """A new process in the place of one that is of no use, or that could not be started. Raises ProblemError."""
        if decoder is not None:
            await decoder.kill()
            self._processes.discard(decoder)  # not before: `stop` ends what is left of it
        try:
            return await self._start_process()
        except (DecoderDied, TimeoutError, OSError) as error:
            log.error("a decoder cannot be started: %s", error)
            raise problem_error(500, "internal", "the service cannot start its decoder; its log says why") from error

    async def _replace(self, decoder: DecoderProcess | None) -> None:
        replacement = None
        try:
            replacement = await self._restart_process(decoder)
        except ProblemError:
            pass  # whoever asks next tries again
        finally:
            self._idle.put_nowait(replacement)

    def _run_in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _report_confinement(confinement: tuple[str, ...]) -> None:
    """Say at the start what is not in force."""
    lacks = {
        "landlock": "from reading other files (this needs Linux 5.13 or newer and the package landlock)",
        "seccomp": "from the network and from other processes (this needs Linux, libseccomp and the package pyseccomp)",
    }
    for name, text in lacks.items():
        if name not in confinement:
            log.warning("decoders have limits of time and memory, but nothing keeps one that is taken over %s", text)
