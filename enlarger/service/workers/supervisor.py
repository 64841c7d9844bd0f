"""The worker processes: started, given commands, listened to, and started again when they die."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import ValidationError

from enlarger.service.settings import ModelSettings
from enlarger.service.workers import messages
from enlarger.service.workers.watchdog import CHECK_SECONDS, DIED, LossCause, Watchdog, WorkerLimits

WORKER_ARGV = (sys.executable, "-m", "enlarger.service.worker.main")
MAX_LINE_BYTES = 1 << 20  # bytes of the longest message of a worker
CANCEL_SECONDS = 60.0  # for a worker to let go of a canceled job; then it is killed
STOP_SECONDS = 5.0  # for a worker to end once its input is closed
MAX_START_FAILURES = 5  # in a row, none more than START_SECONDS after the one before: it cannot be started
START_FAILURE_SECONDS = 60.0
MAX_RESTART_DELAY = 4.0  # seconds before a worker is started again
KERNEL_CACHE_ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""How many compiled kernels PyTorch keeps on a CPU, one for each shape; by default 1,024, which take long to fill."""
MAX_REPORTED_LINES = 5  # lines of one process that are reported

log = logging.getLogger("enlarger.service.jobs")


@dataclass(frozen=True)
class WorkerCommand:
    """How workers are started."""

    argv: Sequence[str]
    models: Sequence[ModelSettings]
    memory: float | None
    data: Path
    limits: WorkerLimits
    prompt_tokens: int
    lock_fd: int | None = None  # an open file that they inherit
    models_folder: Path | None = None
    allow_pickle: bool = False

    def start_command(self, device: str) -> messages.Start:
        """The first command of a process."""
        return messages.Start(
            models=tuple(self.models),
            device=device,
            memory=self.memory,
            data=self.data.absolute(),
            prompt_tokens=self.prompt_tokens,
            models_folder=None if self.models_folder is None else self.models_folder.absolute(),
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True)
class WorkerPlan:
    """Which workers there are: a device for each, the command that is one, and how many are there at least."""

    devices: Sequence[str]
    argv: Sequence[str] = WORKER_ARGV
    least: int | None = None  # the others are started when they are needed; None: all from the beginning


class WorkerListener(Protocol):
    """Who hears of a worker."""

    def on_event(self, worker: "WorkerSupervisor", event: messages.Event, /) -> None:
        """Its process said something."""
        ...

    def on_jobs_lost(self, worker: "WorkerSupervisor", ids: Sequence[str], cause: LossCause | None, /) -> None:
        """It holds these jobs no more, and said nothing of their end; with a `cause` one of them may be why."""
        ...

    def on_worker_exit(self, worker: "WorkerSupervisor", /) -> None:
        """Its process has ended; `state` says whether another comes."""
        ...


class WorkerSupervisor:
    """One device: a process after another, until it is stopped or there is no hope."""

    def __init__(self, requested_device: str, command: WorkerCommand, listener: WorkerListener) -> None:
        self.requested_device = requested_device
        self.device = requested_device  # the worker's own word for it, once it is ready
        self.state: Literal["released", "starting", "idle", "busy", "down", "defunct"] = "released"
        self.was_ever_ready = False
        self.assigned: dict[
            str, asyncio.TimerHandle | None
        ] = {}  # jobs that it was given; a timer for the canceled ones
        self.started_ids: set[str] = set()  # those of them that it has started
        self._command, self._listener = command, listener
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._was_killed = False  # we killed it, and not for a cause
        self._cause: LossCause | None = None  # for which we killed it
        self._watchdog = Watchdog(command.limits)  # of this process
        self._num_invalid_lines = 0  # that this process wrote
        self._process_number = 0  # counts its processes
        self._is_reserved = False  # jobs are being made ready for it
        self._is_ready = False  # this process
        self._start_failures: list[float] = []  # when its last processes ended that were never ready, in a row
        self._exits_without_result = 0  # processes in a row that ended no job

    @property
    def is_startable(self) -> bool:
        """Whether it has no process, and waits to be started."""
        return self.state == "released" and self._task is None

    def start(self) -> None:
        self.state = "starting"
        self._task = asyncio.create_task(self._supervise(), name=f"worker {self.requested_device}")

    @property
    def is_up(self) -> bool:
        """Whether it has described its models and can work."""
        return self.state in ("idle", "busy")

    @property
    def is_responsive(self) -> bool:
        """Whether its process gives signs of life."""
        return self._watchdog.is_responsive

    def reserve(self) -> int:
        """Hold an idle worker for jobs that are being made ready; the number of its process."""
        assert self.state == "idle"
        self.state, self._is_reserved = "busy", True
        return self._process_number

    def run(self, process_number: int, jobs: Sequence[messages.AssignedJob]) -> bool:
        """Give a reserved worker its jobs, or none after all; False if that process is gone."""
        if process_number != self._process_number or not self.is_up:
            return False
        self._is_reserved = False
        self.assigned.update({job.id: None for job in jobs})
        if jobs:
            self._watchdog.begin_run(len(jobs))
            self.send(messages.Run(jobs=tuple(jobs)))
        else:
            self.state = "idle"
        return True

    def run_model_command(self, command: messages.ModelCommand) -> None:
        """Let an idle worker load or drop a model; it may take as long as a job."""
        assert self.state == "idle"
        self.state = "busy"
        self._watchdog.begin_run(1)
        self.send(command)

    def cancel(self, id: str) -> None:
        """Stop a job that it holds; if it does not let go in time, it is killed."""
        if id in self.assigned and self.assigned[id] is None:
            self.assigned[id] = asyncio.get_running_loop().call_later(
                CANCEL_SECONDS, self._kill_overdue, id, self._process
            )
            self.send(messages.Cancel(id=id))

    def release_job(self, id: str) -> bool:
        """It has let go of a job; False if it did not hold that."""
        if id not in self.assigned:
            return False
        timer = self.assigned.pop(id)
        if timer is not None:
            timer.cancel()
        self.started_ids.discard(id)
        self._exits_without_result = 0
        return True

    def send(self, command: messages.Command) -> None:
        """Write a line to its process; nothing happens if there is none."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(command.encode())

    async def release(self) -> None:
        """End the process of an idle worker, which may be started again."""
        assert self.state == "idle"
        self.state = "released"
        await self.stop()
        self._stopping.clear()
        self._task = None

    async def stop(self) -> None:
        """End its process, in order or by force, and start no other."""
        self._stopping.set()
        self._close_stdin()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            self._kill()
        await self._task

    async def _supervise(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._run_process()
            except OSError as error:
                log.error("the worker of %s cannot be started: %s", self.requested_device, error)
            status = None if self._process is None else self._process.returncode
            self._process = None
            if not self._stopping.is_set():
                await self._on_unexpected_exit(status)
        self._on_exit("down")

    async def _run_process(self) -> None:
        self.state, self._is_ready, self._was_killed = "starting", False, False
        self._cause, self._watchdog = None, Watchdog(self._command.limits)
        self._process_number, self._is_reserved = self._process_number + 1, False
        fds = () if self._command.lock_fd is None else (self._command.lock_fd,)
        self._process = await asyncio.create_subprocess_exec(
            *self._command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=fds,
            limit=MAX_LINE_BYTES,
            env=KERNEL_CACHE_ENV | os.environ,
        )
        self.send(self._command.start_command(self.requested_device))
        if self._stopping.is_set():
            self._close_stdin()
        assert self._process.stdout is not None
        watching = asyncio.create_task(self._watch(self._process.pid, self._watchdog))
        try:
            await self._read_events(self._process.stdout)
            await self._wait_for_exit()
        finally:
            watching.cancel()

    async def _watch(self, pid: int, watchdog: Watchdog) -> None:
        """Kill the process once it breaks a limit."""
        while self._cause is None:
            await asyncio.sleep(CHECK_SECONDS)
            self._cause = watchdog.check(pid)
        problem = self._cause.problem
        log.error("the worker of %s is killed (%s): %s", self.requested_device, problem.code, problem.message)
        self._kill()

    async def _read_events(self, stream: asyncio.StreamReader) -> None:
        """Hear what its process says, one JSON object per line; anything else is reported and left out."""
        count = self._num_invalid_lines = 0
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # too long
                line = b"?"
            if not line:
                return
            self._watchdog.hear()
            self._handle_line(line)
            count += 1
            if count % 64 == 0:
                await asyncio.sleep(0)  # a flood of lines must not keep others waiting

    def _handle_line(self, line: bytes) -> None:
        try:
            self._handle_event(messages.EVENTS.validate_json(line))
        except ValidationError as error:
            self._num_invalid_lines += 1
            if self._num_invalid_lines <= MAX_REPORTED_LINES:
                reasons = ", ".join(sorted({each["type"] for each in error.errors()}))
                text = "the worker of %s wrote a line that is no message (%d bytes: %s)"
                log.warning(text, self.requested_device, len(line), reasons)
        except Exception:
            log.exception("what the worker of %s said could not be followed", self.requested_device)

    def _handle_event(self, event: messages.Event) -> None:
        if isinstance(event, messages.Ready):
            self._is_ready = self.was_ever_ready = True
            self.device = event.device
        elif isinstance(event, messages.JobStarted) and event.id in self.assigned:
            self.started_ids.add(event.id)
        elif isinstance(event, messages.Idle) and self._is_ready:
            self._on_idle()
        self._listener.on_event(self, event)

    def _on_idle(self) -> None:
        """It waits for work. What it began and said no more of is lost; what is still on its way to it is not."""
        lost = [id for id in self.assigned if id in self.started_ids]
        if lost:
            log.error("the worker of %s left %d jobs without a word", self.requested_device, len(lost))
            for id in lost:
                self.release_job(id)
            self._listener.on_jobs_lost(self, lost, DIED)
        if not self.assigned:
            self._watchdog.end_run()
        self.state = "busy" if self.assigned or self._is_reserved else "idle"

    async def _wait_for_exit(self) -> None:
        """Its output has ended: let the process end too."""
        assert self._process is not None
        self._close_stdin()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._kill()
            await self._process.wait()

    async def _on_unexpected_exit(self, status: int | None) -> None:
        is_defunct = self._count_exit()
        text = "; it cannot be started" if is_defunct else ", and is started again"
        log.error("the worker of %s ended with status %s%s", self.requested_device, status, text)
        self._on_exit("defunct" if is_defunct else "down")
        if is_defunct:
            self._stopping.set()
        elif self._exits_without_result > 1:
            await _wait_for_event(self._stopping, min(0.25 * 2 ** (self._exits_without_result - 2), MAX_RESTART_DELAY))

    def _count_exit(self) -> bool:
        """Whether there is no hope."""
        now = time.monotonic()
        if self._is_ready or (self._start_failures and now - self._start_failures[-1] > START_FAILURE_SECONDS):
            self._start_failures.clear()
        if not self._is_ready:
            self._start_failures.append(now)
        self._exits_without_result += 1
        return len(self._start_failures) >= MAX_START_FAILURES

    def _on_exit(self, state: Literal["down", "defunct"]) -> None:
        """What it held is given back; jobs that we killed it over, or beside, are not blamed."""
        assigned, self.assigned = self.assigned, {}
        self.started_ids.clear()
        for timer in assigned.values():
            if timer is not None:
                timer.cancel()
        if self.state not in ("defunct", "released"):
            self.state = state
        if assigned:
            is_blamed = self._cause is not None or not (self._was_killed or self._stopping.is_set())
            self._listener.on_jobs_lost(self, list(assigned), (self._cause or DIED) if is_blamed else None)
        self._listener.on_worker_exit(self)

    def _kill_overdue(self, id: str, process: asyncio.subprocess.Process | None) -> None:
        if id in self.assigned and process is self._process:
            log.error("the worker of %s does not stop a canceled job, and is killed", self.requested_device)
            self._was_killed = True
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                log.debug("the worker of %s had ended already", self.requested_device)

    def _close_stdin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


async def _wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Until an event, or so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
