"""Decoding pictures in processes apart: one that hangs, crashes or eats memory costs its own picture and no more."""

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.settings import Settings
from enlarger.service.uploads.masks import Fit

MAX_PROCESSES = 2
MAX_IMAGES_PER_PROCESS = 200  # that a child decodes before a new one takes its place
START_SECONDS = 60  # for a child to import what it needs
MAX_MESSAGE_BYTES = 4 << 20  # bytes of a message; notes may be long
log = logging.getLogger("enlarger.service.decoder")


@dataclass(frozen=True)
class DecodedImage:
    """A picture that was decoded and written as a PNG."""

    width: int  # as written, after any fit
    height: int
    format: str  # Pillow's name of the file's
    mode: str  # of the PNG: L, LA, RGB, RGBA or I;16
    notes: tuple[str, ...]  # what was converted, guessed or left out, except what a reader of the PNG says again
    sha256: str  # of the file as it came
    has_transparency: bool  # some of it is less than opaque
    original_size: tuple[int, int]  # width and height, upright, before any fit

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "DecodedImage":
        tuples: dict[str, Any] = {"notes": tuple(data["notes"]), "original_size": tuple(data["original_size"])}
        return cls(**data | tuples)


class DecoderDied(Exception):
    """A child that ended, or that said nothing in time."""


async def _spawn_process(pixels: int, cpu_seconds: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "enlarger.service.uploads.decoder_process",
        str(pixels),
        str(cpu_seconds),
        stdin=PIPE,
        stdout=PIPE,
        limit=MAX_MESSAGE_BYTES,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the server
    )


class DecoderProcess:
    """A decoder process, one picture at a time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.num_decoded = 0

    @classmethod
    async def start(cls, pixels: int, seconds: float) -> "DecoderProcess":
        """Start one and wait until it is ready. Raises Died."""
        starting = asyncio.create_task(_spawn_process(pixels, int(seconds * MAX_IMAGES_PER_PROCESS) + START_SECONDS))
        try:
            decoder = cls(await asyncio.shield(starting))
        except asyncio.CancelledError:  # between fork and here nobody would end it
            await cls(await starting).kill()
            raise
        try:
            await decoder.read_reply(START_SECONDS)
        except BaseException:
            await decoder.kill()
            raise
        return decoder

    async def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to one message. Raises Died and TimeoutError; the child is of no use then."""
        self.num_decoded += 1
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            await self.process.stdin.drain()
        except OSError as error:
            raise DecoderDied("it had ended before") from error
        return await self.read_reply(seconds)

    async def read_reply(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), seconds)
            return json.loads(line)
        except ValueError as error:  # nothing, half a line, or one too long
            raise DecoderDied("it ended without an answer") from error

    async def kill(self) -> None:
        """Kill the process, if it still runs, and wait for it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self.process.communicate()


class DecoderPool:
    """A few warm children that decode what users send."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = settings.bounds
        self._idle: asyncio.Queue[DecoderProcess | None] = asyncio.Queue()  # None is a child that could not be started
        self._processes: set[DecoderProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the children. Raises Died if they cannot be."""
        self._idle = asyncio.Queue()
        count = min(MAX_PROCESSES, os.cpu_count() or 1)
        for started in await asyncio.gather(*(self._start_process() for _ in range(count)), return_exceptions=True):
            if isinstance(started, BaseException):
                await self.stop()
                raise started
            self._idle.put_nowait(started)

    async def stop(self) -> None:
        """End the children, whatever they do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self._processes))
        self._processes.clear()

    async def decode_image(
        self, source: Path, out: Path, *, max_pixels: int, param: str = "image", fit: Fit | None = None
    ) -> DecodedImage:
        """Write a file's picture, upright, of at most `most` pixels, as a PNG. Raises Refused."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode({"kind": "picture"}, source, out, max_pixels, param, fit)

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
    ) -> DecodedImage:
        """Write a file's mask as a grey PNG, white is repainted. Raises Refused.

        `size` is the picture's before its fit, `Decoded.original`; `fit` is the picture's. `mode` as in `read_mask`.
        """
        self._check_bytes(source, self._bounds.mask, param)
        request = {"kind": "mask", "size": size, "mode": mode, "resize": resize}
        return await self._decode(request, source, out, self._bounds.pixels, param, fit)

    async def decode_alpha_mask(
        self, source: Path, out: Path, *, fit: Fit | None = None, param: str = "image"
    ) -> DecodedImage:
        """Write what is transparent of a picture as a mask. Raises Refused if nothing is."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode({"kind": "alpha"}, source, out, self._bounds.pixels, param, fit)

    def _check_bytes(self, source: Path, max_bytes: int, param: str) -> None:
        size = source.stat().st_size
        if size > max_bytes:
            text = (
                f"{param}: is {size:,} bytes, at most {max_bytes:,} are read; shrink the picture or compress it better"
            )
            raise problem_error(400, "image_file_too_large", text, param)

    async def _decode(
        self, request: dict[str, Any], source: Path, out: Path, max_pixels: int, param: str, fit: Fit | None
    ) -> DecodedImage:
        message = request | {
            "source": str(source),
            "out": str(out),
            "most": max_pixels,
            "name": param,
            "seconds": self._bounds.decode_seconds,
            "fit": None if fit is None else fit.to_json(),
        }
        reply = await self._request(message, param)
        if "problem" in reply:
            raise ProblemError(Problem.from_json(reply["problem"]))
        return DecodedImage.from_json(reply["ok"])

    async def _request(self, message: dict[str, Any], param: str) -> dict[str, Any]:
        """A child's reply. A picture over which two children were lost is refused: one may be an accident."""
        for _ in range(2):
            try:
                return await self._request_once(message, param)
            except DecoderDied as error:
                log.warning("a decoder was lost over a picture: %s", error)
        text = f"{param}: cannot be decoded, the decoder failed on it; save it anew with another program"
        raise problem_error(400, "image_parse_error", text, param)

    async def _request_once(self, message: dict[str, Any], param: str) -> dict[str, Any]:
        """A child's reply. One that failed, or was left in the middle, is replaced."""
        decoder, succeeded = await self._idle.get(), False
        try:
            if decoder is None or decoder.process.returncode is not None:
                decoder = await self._restart_process(decoder)
            reply = await decoder.request(message, self._bounds.decode_seconds)
            succeeded = True
            return reply
        except TimeoutError:
            text = f"{param}: took longer than {self._bounds.decode_seconds:g} seconds to decode"
            raise problem_error(400, "image_parse_error", f"{text}; shrink it, or save it anew", param) from None
        finally:
            if succeeded and decoder is not None and decoder.num_decoded < MAX_IMAGES_PER_PROCESS:
                self._idle.put_nowait(decoder)
            else:
                self._run_in_background(self._replace(decoder))

    async def _start_process(self) -> DecoderProcess:
        decoder = await DecoderProcess.start(
            max(self._bounds.pixels, self._bounds.upscale_pixels), self._bounds.decode_seconds
        )
        self._processes.add(decoder)
        return decoder

    async def _restart_process(self, decoder: DecoderProcess | None) -> DecoderProcess:
        """A new child in the place of one that is of no use, or that could not be started. Raises Refused."""
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
