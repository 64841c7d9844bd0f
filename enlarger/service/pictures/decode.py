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

from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.pictures.masks import Fit
from enlarger.service.settings import Settings

MOST_CHILDREN = 2
MOST_PICTURES = 200  # that a child decodes before a new one takes its place
START_SECONDS = 60  # for a child to import what it needs
LINE = 4 << 20  # bytes of a message; notes may be long
log = logging.getLogger("enlarger.service.decoder")


@dataclass(frozen=True)
class Decoded:
    """A picture that was decoded and written as a PNG."""

    width: int  # as written, after any fit
    height: int
    format: str  # Pillow's name of the file's
    mode: str  # of the PNG: L, LA, RGB, RGBA or I;16
    notes: tuple[str, ...]  # what was converted, guessed or left out, except what a reader of the PNG says again
    sha256: str  # of the file as it came
    transparent: bool  # some of it is less than opaque
    original: tuple[int, int]  # width and height, upright, before any fit

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Decoded":
        lists: dict[str, Any] = {"notes": tuple(found["notes"]), "original": tuple(found["original"])}
        return cls(**found | lists)


class Died(Exception):
    """A child that ended, or that said nothing in time."""


async def _process(pixels: int, cpu_seconds: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "enlarger.service.pictures.decoder",
        str(pixels),
        str(cpu_seconds),
        stdin=PIPE,
        stdout=PIPE,
        limit=LINE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the server
    )


class Child:
    """A decoder process, one picture at a time."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.served = 0

    @classmethod
    async def start(cls, pixels: int, seconds: float) -> "Child":
        """Start one and wait until it is ready. Raises Died."""
        starting = asyncio.create_task(_process(pixels, int(seconds * MOST_PICTURES) + START_SECONDS))
        try:
            child = cls(await asyncio.shield(starting))
        except asyncio.CancelledError:  # between fork and here nobody would end it
            await cls(await starting).end()
            raise
        try:
            await child.read(START_SECONDS)
        except BaseException:
            await child.end()
            raise
        return child

    async def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to one message. Raises Died and TimeoutError; the child is of no use then."""
        self.served += 1
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            await self.process.stdin.drain()
        except OSError as error:
            raise Died("it had ended before") from error
        return await self.read(seconds)

    async def read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), seconds)
            return json.loads(line)
        except ValueError as error:  # nothing, half a line, or one too long
            raise Died("it ended without an answer") from error

    async def end(self) -> None:
        """Kill the process, if it still runs, and wait for it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        await self.process.communicate()


class Decoder:
    """A few warm children that decode what users send."""

    def __init__(self, settings: Settings) -> None:
        self._bounds = settings.bounds
        self._idle: asyncio.Queue[Child | None] = asyncio.Queue()  # None is a child that could not be started
        self._children: set[Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the children. Raises Died if they cannot be."""
        self._idle = asyncio.Queue()
        count = min(MOST_CHILDREN, os.cpu_count() or 1)
        for found in await asyncio.gather(*(self._new() for _ in range(count)), return_exceptions=True):
            if isinstance(found, BaseException):
                await self.stop()
                raise found
            self._idle.put_nowait(found)

    async def stop(self) -> None:
        """End the children, whatever they do."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(child.end() for child in self._children))
        self._children.clear()

    async def picture(
        self, source: Path, out: Path, *, most: int, param: str = "image", fit: Fit | None = None
    ) -> Decoded:
        """Write a file's picture, upright, of at most `most` pixels, as a PNG. Raises Refused."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode({"kind": "picture"}, source, out, most, param, fit)

    async def mask(
        self,
        source: Path,
        out: Path,
        *,
        size: tuple[int, int],
        mode: str = "auto",
        resize: bool = False,
        fit: Fit | None = None,
        param: str = "mask",
    ) -> Decoded:
        """Write a file's mask as a grey PNG, white is repainted. Raises Refused.

        `size` is the picture's before its fit, `Decoded.original`; `fit` is the picture's. `mode` as in `read_mask`.
        """
        self._check_bytes(source, self._bounds.mask, param)
        ask = {"kind": "mask", "size": size, "mode": mode, "resize": resize}
        return await self._decode(ask, source, out, self._bounds.pixels, param, fit)

    async def mask_of_picture(
        self, source: Path, out: Path, *, fit: Fit | None = None, param: str = "image"
    ) -> Decoded:
        """Write what is transparent of a picture as a mask. Raises Refused if nothing is."""
        self._check_bytes(source, self._bounds.image, param)
        return await self._decode({"kind": "alpha"}, source, out, self._bounds.pixels, param, fit)

    def _check_bytes(self, source: Path, most: int, param: str) -> None:
        size = source.stat().st_size
        if size > most:
            text = f"{param}: is {size:,} bytes, at most {most:,} are read; shrink the picture or compress it better"
            raise refuse(400, "image_file_too_large", text, param)

    async def _decode(
        self, ask: dict[str, Any], source: Path, out: Path, most: int, param: str, fit: Fit | None
    ) -> Decoded:
        message = ask | {
            "source": str(source),
            "out": str(out),
            "most": most,
            "name": param,
            "seconds": self._bounds.decode_seconds,
            "fit": None if fit is None else fit.to_json(),
        }
        answer = await self._ask(message, param)
        if "fault" in answer:
            raise Refused(Fault.from_json(answer["fault"]))
        return Decoded.from_json(answer["ok"])

    async def _ask(self, message: dict[str, Any], param: str) -> dict[str, Any]:
        """A child's reply. A picture over which two children were lost is refused: one may be an accident."""
        for _ in range(2):
            try:
                return await self._ask_one(message, param)
            except Died as error:
                log.warning("a decoder was lost over a picture: %s", error)
        text = f"{param}: cannot be decoded, the decoder failed on it; save it anew with another program"
        raise refuse(400, "image_parse_error", text, param)

    async def _ask_one(self, message: dict[str, Any], param: str) -> dict[str, Any]:
        """A child's reply. One that failed, or was left in the middle, is replaced."""
        child, whole = await self._idle.get(), False
        try:
            if child is None or child.process.returncode is not None:
                child = await self._renewed(child)
            answer = await child.ask(message, self._bounds.decode_seconds)
            whole = True
            return answer
        except TimeoutError:
            text = f"{param}: took longer than {self._bounds.decode_seconds:g} seconds to decode"
            raise refuse(400, "image_parse_error", f"{text}; shrink it, or save it anew", param) from None
        finally:
            if whole and child is not None and child.served < MOST_PICTURES:
                self._idle.put_nowait(child)
            else:
                self._later(self._replace(child))

    async def _new(self) -> Child:
        child = await Child.start(max(self._bounds.pixels, self._bounds.upscale_pixels), self._bounds.decode_seconds)
        self._children.add(child)
        return child

    async def _renewed(self, child: Child | None) -> Child:
        """A new child in the place of one that is of no use, or that could not be started. Raises Refused."""
        if child is not None:
            await child.end()
            self._children.discard(child)  # not before: `stop` ends what is left of it
        try:
            return await self._new()
        except (Died, TimeoutError, OSError) as error:
            log.error("a decoder cannot be started: %s", error)
            raise refuse(500, "internal", "the service cannot start its decoder; its log says why") from error

    async def _replace(self, child: Child | None) -> None:
        fresh = None
        try:
            fresh = await self._renewed(child)
        except Refused:
            pass  # whoever asks next tries again
        finally:
            self._idle.put_nowait(fresh)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
