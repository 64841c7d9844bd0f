"""The worker processes: started, told what to do, heard, and started again when they die."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from enlarger.service.jobs import Ask

WORKER = (sys.executable, "-m", "enlarger.service.worker.main")
LINE = 1 << 20  # bytes of the longest line that a worker may say
CANCEL_SECONDS = 60.0  # for a worker to let go of a canceled job; then it is killed
STOP_SECONDS = 5.0  # for a worker to end once its input is closed
START_DEATHS = 5  # in a row, none more than START_SECONDS after the one before: it cannot be started
START_SECONDS = 60.0
LONGEST_PAUSE = 4.0  # seconds before a worker is started again
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""How many compiled kernels PyTorch keeps on a CPU, one for each shape; by default 1,024, which take long to fill."""
GARBLED = 5  # lines of one process that are reported

log = logging.getLogger("enlarger.service.queue")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Launch:
    """How workers are started."""

    command: Sequence[str]
    models: Sequence[Message]  # the settings of each
    memory: float | None
    data: Path
    lock: int | None = None  # an open file that they inherit

    def first(self, device: str) -> Message:
        """The first thing that a worker is told."""
        told = {"do": "start", "models": list(self.models), "device": device, "memory": self.memory}
        return told | {"data": str(self.data.absolute())}


class Boss(Protocol):
    """Who hears of a worker."""

    def said(self, worker: "Worker", message: Message, /) -> None:
        """Its process said something."""
        ...

    def lost(self, worker: "Worker", ids: Sequence[str], blamed: bool, /) -> None:
        """It holds these jobs no more, and nothing was heard of their end; `blamed`: one of them may be why."""
        ...

    def ended(self, worker: "Worker", /) -> None:
        """Its process has ended; `state` tells whether another comes."""
        ...


class Worker:
    """One device: a process after another, until it is stopped or there is no hope."""

    def __init__(self, asked: str, launch: Launch, boss: Boss) -> None:
        self.asked = asked
        self.device = asked  # the worker's own word for it, once it is ready
        self.state: Literal["starting", "idle", "busy", "down", "defunct"] = "starting"
        self.ever_ready = False
        self.held: dict[str, asyncio.TimerHandle | None] = {}  # jobs that it was given; a timer for the canceled ones
        self.begun: set[str] = set()  # those of them that it has started
        self._launch, self._boss = launch, boss
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._on_purpose = False  # we killed it
        self._life = 0  # counts its processes
        self._engaged = False  # jobs are being made ready for it
        self._ready = False  # this process
        self._failed: list[float] = []  # when its last processes ended that were never ready, in a row
        self._useless = 0  # processes in a row that ended no job

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"worker {self.asked}")

    @property
    def up(self) -> bool:
        """Whether it has described its models and can work."""
        return self.state in ("idle", "busy")

    def engage(self) -> int:
        """Keep an idle worker for jobs that are being made ready; the number of its process."""
        assert self.state == "idle"
        self.state, self._engaged = "busy", True
        return self._life

    def run(self, life: int, jobs: Sequence[tuple[str, Ask]]) -> bool:
        """Give an engaged worker its jobs, or none after all; False if that process is gone."""
        if life != self._life or not self.up:
            return False
        self._engaged = False
        self.held.update({id: None for id, _ in jobs})
        if jobs:
            self.tell({"do": "run", "jobs": [{"id": id, "ask": ask.to_json()} for id, ask in jobs]})
        else:
            self.state = "idle"
        return True

    def cancel(self, id: str) -> None:
        """Stop a job that it holds; if it does not let go in time, it is killed."""
        if id in self.held and self.held[id] is None:
            self.held[id] = asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._overdue, id, self._process)
            self.tell({"do": "cancel", "id": id})

    def release(self, id: str) -> bool:
        """It has let go of a job; False if it did not hold that."""
        if id not in self.held:
            return False
        timer = self.held.pop(id)
        if timer is not None:
            timer.cancel()
        self.begun.discard(id)
        self._useless = 0
        return True

    def tell(self, message: Message) -> None:
        """Write a line to its process; nothing happens if there is none."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def stop(self) -> None:
        """End its process, in order or by force, and start no other."""
        self._closing.set()
        self._shut()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            self._kill()
        await self._task

    async def _live(self) -> None:
        while not self._closing.is_set():
            try:
                await self._one_life()
            except OSError as error:
                log.error("the worker of %s cannot be started: %s", self.asked, error)
            status = None if self._process is None else self._process.returncode
            self._process = None
            if not self._closing.is_set():
                await self._after_death(status)
        self._bury("down")

    async def _one_life(self) -> None:
        self.state, self._ready, self._on_purpose = "starting", False, False
        self._life, self._engaged = self._life + 1, False
        fds = () if self._launch.lock is None else (self._launch.lock,)
        self._process = await asyncio.create_subprocess_exec(
            *self._launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=fds,
            limit=LINE,
            env=KERNELS | os.environ,
        )
        self.tell(self._launch.first(self.asked))
        if self._closing.is_set():
            self._shut()
        assert self._process.stdout is not None
        async for message in _messages(self._process.stdout, self.asked):
            self._hear(message)
        await self._end()

    def _hear(self, message: Message) -> None:
        try:
            if message["event"] == "ready":
                self._ready = self.ever_ready = True
                self.device = str(message["device"])
            elif message["event"] == "started" and message["id"] in self.held:
                self.begun.add(message["id"])
            elif message["event"] == "idle" and self._ready:
                self._rest()
            self._boss.said(self, message)
        except Exception:
            log.exception("the worker of %s said %r in a form that is not understood", self.asked, message["event"])

    def _rest(self) -> None:
        """It waits for work. What it began and said no more of is lost; what is still on its way to it is not."""
        lost = [id for id in self.held if id in self.begun]
        if lost:
            log.error("the worker of %s left %d jobs without a word", self.asked, len(lost))
            for id in lost:
                self.release(id)
            self._boss.lost(self, lost, True)
        self.state = "busy" if self.held or self._engaged else "idle"

    async def _end(self) -> None:
        """Its output has ended: let the process end too."""
        assert self._process is not None
        self._shut()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._kill()
            await self._process.wait()

    async def _after_death(self, status: int | None) -> None:
        hopeless = self._count_death()
        text = "; it cannot be started" if hopeless else ", and is started again"
        log.error("the worker of %s ended with status %s%s", self.asked, status, text)
        self._bury("defunct" if hopeless else "down")
        if hopeless:
            self._closing.set()
        elif self._useless > 1:
            await _either(self._closing, min(0.25 * 2 ** (self._useless - 2), LONGEST_PAUSE))

    def _count_death(self) -> bool:
        """Whether there is no hope."""
        now = time.monotonic()
        if self._ready or (self._failed and now - self._failed[-1] > START_SECONDS):
            self._failed.clear()
        if not self._ready:
            self._failed.append(now)
        self._useless += 1
        return len(self._failed) >= START_DEATHS

    def _bury(self, state: Literal["down", "defunct"]) -> None:
        """What it held is given back; jobs that we killed it over, or beside, are not blamed."""
        held, self.held = self.held, {}
        self.begun.clear()
        for timer in held.values():
            if timer is not None:
                timer.cancel()
        if self.state != "defunct":
            self.state = state
        if held:
            self._boss.lost(self, list(held), not self._on_purpose and not self._closing.is_set())
        self._boss.ended(self)

    def _overdue(self, id: str, process: asyncio.subprocess.Process | None) -> None:
        if id in self.held and process is self._process:
            log.error("the worker of %s does not stop a canceled job, and is killed", self.asked)
            self._on_purpose = True
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("the worker of %s had ended already", self.asked)

    def _shut(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


async def _messages(stream: asyncio.StreamReader, device: str) -> AsyncGenerator[Message]:
    """What a worker says, one JSON object per line; anything else is reported and left out."""
    garbled = count = 0
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # too long
            line = b"?"
        if not line:
            return
        message = _parsed(line)
        if message is not None:
            yield message
        else:
            garbled += 1
            if garbled <= GARBLED:
                log.warning("the worker of %s wrote a line that is no message (%d bytes)", device, len(line))
        count += 1
        if count % 64 == 0:
            await asyncio.sleep(0)  # a flood of lines must not keep others waiting


def _parsed(line: bytes) -> Message | None:
    try:
        found: object = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    message = cast("dict[str, Any]", found)
    return message if isinstance(message.get("event"), str) else None


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Until an event, or so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
