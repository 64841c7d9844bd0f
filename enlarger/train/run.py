"""A training from its options to its result: everything is checked, then the loop runs, then a folder appears."""

import hashlib
import json
import math
import platform
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn

from enlarger.errors import InputError, NonFinite
from enlarger.image.atomic_write import atomic_write
from enlarger.runtime.choices import resolve_device
from enlarger.strict_json import is_object, parse_json
from enlarger.train.card import Figures, card
from enlarger.train.data import DataOptions, Dataset, TrainingBatch, open_dataset
from enlarger.train.data.cache import weights_digest
from enlarger.train.data.entries import TarSlice
from enlarger.train.devices import Devices, choose_devices
from enlarger.train.draws import draws_of_step
from enlarger.train.loop import TrainedStep, new_state, train_steps
from enlarger.train.options import TrainOptions
from enlarger.train.result import check_place, write_result
from enlarger.train.samples import write_samples
from enlarger.train.start import Training, start
from enlarger.train.state import Settings, State

LAST_LOSSES = 100  # whose mean is shown
LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands: steps done and asked for, mean of the last losses, rate, and the memory at its most."""

    step: int
    steps: int
    loss: float
    rate: float
    memory: int  # bytes, of the device or, on a CPU, of the process
    skipped: Mapping[str, str]  # pictures of the data that could not be read, and why


TrainingWatch = Callable[[TrainingProgress], None]


def no_watch(progress: TrainingProgress) -> None:
    """Nobody watches."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Pictures of a step, which of its rows they are, and what their chance follows from."""

    batch: TrainingBatch
    seed: int
    step: int
    rows: range

    def __str__(self) -> str:
        captions = [caption for caption in self.batch.captions if caption]
        described = f" of {', '.join(map(repr, captions[:3]))}{' ...' if len(captions) > 3 else ''}" if captions else ""
        return f"{len(self.rows)} pictures{described}{self.batch.listed_names()}"


def train(options: TrainOptions, watch: TrainingWatch = no_watch) -> Path:
    """Train as asked, and write a folder in diffusers' layout, or a LoRA's file; its path.

    State, log and samples lie in `options.work`. Raises InputError and Unsupported, before the first step, for what
    cannot be: a base of another kind, data without pictures, a place that is taken.
    """
    check_place(options)
    devices = choose_devices(resolve_device(options.device), options.precision, options.tracker, options.work)
    try:
        return _train_on(devices, options, watch)
    finally:
        devices.close()


def _train_on(devices: Devices, options: TrainOptions, watch: TrainingWatch) -> Path:
    training = start(options, devices.device)
    data = open_dataset(options.data, options.resolution, _data_options(options, training))
    if options.warmup >= options.steps and devices.rank == 0:
        warnings.warn(
            f"warmup is {options.warmup} steps of {options.steps}: the rate never reaches {options.rate:g}; give a "
            "lower --warmup, or more --steps",
            stacklevel=3,
        )
    state = new_state(training.module.to(devices.device), options.recipe)
    settings, path = _fixed(options, devices, training, data), options.work / "state.safetensors"
    first = state.resume(path, settings) if options.resume else 0
    if first > options.steps:
        raise InputError(f"{path}: has learnt {first} steps, --steps is {options.steps}; give at least as many")
    if devices.rank == 0:
        _begin_work(options, first)
    devices.wait()  # until all have read it
    losses = _Run(options, devices, training, data, state).steps(first, settings, path, watch)
    if devices.rank == 0:
        figures = _figures(options, devices, training, data, losses)
        write_result(options, training, state.result, card(options, figures))
    devices.wait()
    return options.out


def rows_of_steps(data: Dataset, options: TrainOptions, devices: Devices, first: int, end: int) -> Iterator[Rows]:
    """This process's share of the steps `first` to `end`, in portions of `options.batch` pictures."""
    share = options.batch * options.accumulate
    place = (devices.rank, devices.processes)
    batches = data.batches(share * devices.processes, options.seed, first, rank=place[0], world_size=place[1])
    for step, batch in zip(range(first, end), batches, strict=False):
        for start_row in range(0, share, options.batch):
            portion = _part(batch, slice(start_row, start_row + options.batch))
            begin = devices.rank * share + start_row
            yield Rows(portion, options.seed, step, range(begin, begin + options.batch))


@dataclass(frozen=True, eq=False)
class _Run:
    """The parts of a training that runs."""

    options: TrainOptions
    devices: Devices
    training: Training
    data: Dataset
    state: State

    def steps(self, first: int, settings: Settings, path: Path, watch: TrainingWatch) -> deque[float]:
        """Run the steps that are left, with log, states and samples; the last losses."""
        options, losses, saved, step = self.options, deque[float](maxlen=LAST_LOSSES), monotonic(), first
        rows = rows_of_steps(self.data, options, self.devices, first, options.steps)
        try:
            with interrupts_wait(alone=self.devices.processes == 1) as interrupted:
                for done in train_steps(self.state, self.loss, rows, options.recipe, first, self.devices):
                    step = done.step
                    losses.append(done.loss)
                    self.devices.log({"loss": done.loss, "rate": done.rate, "gradient": done.norm}, step)
                    if self.devices.rank == 0:
                        progress = self._progress(done, losses)
                        watch(progress)
                        stops = interrupted()  # what comes later waits for the next step
                        if monotonic() - saved > options.save_every or step == options.steps or stops:
                            self.state.save(path, step, settings)
                            saved = monotonic()
                        self._note(progress)
                        if stops:
                            raise KeyboardInterrupt
        except NonFinite as error:
            if self.devices.rank == 0 and step > first:
                self.state.save(path, step, settings)  # its last step changed nothing
            kept = (
                "begin anew with" if step == 0 else f"the state of step {step} is kept: go on from it with --resume and"
            )
            raise NonFinite(f"{error}; {kept} a lower --rate, or look at these pictures") from error
        return losses

    def _progress(self, done: TrainedStep, losses: deque[float]) -> TrainingProgress:
        memory = used_memory(self.devices.device)
        loss = sum(losses) / len(losses)
        return TrainingProgress(done.step, self.options.steps, loss, done.rate, memory, self.data.skipped)

    def loss(self, network: nn.Module, rows: Rows, progress: float) -> Tensor:
        """That of some rows; what is drawn for them is the same each time it is asked for."""
        return self.training.objective(network, rows.batch, draws_of_step(rows.seed, rows.step, rows.rows))

    def _note(self, progress: TrainingProgress) -> None:
        """A line of the log, and samples, where they are due; the training goes on without those that fail."""
        try:
            self._write_notes(progress)
        except OSError as error:
            warnings.warn(
                f"{self.options.work}: log and samples of step {progress.step} could not be written "
                f"({error.strerror or error}); the training goes on without them",
                stacklevel=2,
            )

    def _write_notes(self, progress: TrainingProgress) -> None:
        options, samples = self.options, self.options.samples
        if progress.step % LOG_EVERY == 0 or progress.step == progress.steps:
            line = {"step": progress.step, "loss": progress.loss, "rate": progress.rate, "memory": progress.memory}
            line |= {"left out": len(progress.skipped)} if progress.skipped else {}
            with (options.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if samples.sample_every is not None and progress.step % samples.sample_every == 0:
            batch = next(self.data.batches(options.batch, options.seed))
            path = options.work / "samples" / f"step-{progress.step:06d}.png"
            write_samples(self.training, self.state.result, batch, samples, path, options.seed)


def _fixed(options: TrainOptions, devices: Devices, training: Training, data: Dataset) -> Settings:
    """What a training that goes on must share with the one that began; places may change, what lies there may not."""
    networks = [part for part in training.components.components.values() if isinstance(part, nn.Module)]
    captions = [
        entry.caption.length if isinstance(entry.caption, TarSlice) else entry.caption for entry in data.entries
    ]
    told = [(entry.size, caption) for entry, caption in zip(data.entries, captions, strict=True)]
    pictures = hashlib.sha256(repr(told).encode()).hexdigest()
    return options.fixed_settings(devices.processes) | {
        "digest of the base's weights": weights_digest(*networks)[:12],
        "digest of the pictures' sizes and captions": pictures[:12],
    }


def _begin_work(options: TrainOptions, first: int) -> None:
    """The folder for state, log and samples, without what a killed training left half written there.

    The log says where it goes on, and forgets the steps after that, which are learnt once more. Raises InputError where
    the folder cannot be made.
    """
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        for part in options.work.glob(".state.safetensors.*"):
            part.unlink(missing_ok=True)
        log = options.work / "log.jsonl"
        lines = log.read_text("utf-8").splitlines() if log.is_file() else []
        kept = [line for line in lines if _step_of_line(line) <= first]
        if first:
            kept.append(json.dumps({"resumed_at": first, "rate": options.rate, "warmup": options.warmup}))
        with atomic_write(log) as stream:
            stream.write("".join(f"{line}\n" for line in kept).encode())
    except OSError as error:
        raise InputError(
            f"{options.work}: cannot be written to ({error.strerror or error}); choose another --out"
        ) from error


def _step_of_line(line: str) -> float:
    """The step that a line of the log is about; of half a line, which a killed training left, infinity."""
    try:
        found = parse_json(line)
    except ValueError:
        return math.inf
    step = found.get("step", found.get("resumed_at")) if is_object(found) else None
    return step if isinstance(step, int) else math.inf


@contextmanager
def interrupts_wait(*, alone: bool) -> Generator[Callable[[], bool]]:
    """Ctrl-C waits until the step is done, so that its state can be kept; a second one does not.

    Yields whether it came. Only in the main thread, and only of a process that is `alone`: others would wait for ever.
    """
    asked: list[int] = []
    is_ours = signal.getsignal(signal.SIGINT) not in (None, signal.SIG_IGN)  # a script's background is not asked
    if not (alone and is_ours) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def used_memory(device: torch.device) -> int:
    """Bytes at most so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _data_options(options: TrainOptions, training: Training) -> DataOptions:
    asked = options.data_settings
    return DataOptions(
        asked.buckets,
        training.size_multiple,
        asked.center_crop,
        asked.random_flip,
        asked.caption,
        asked.caption_column,
        needs_captions=not options.task.startswith("upscaler"),
    )


def _part(batch: TrainingBatch, rows: slice) -> TrainingBatch:
    """Some rows of a batch."""
    return replace(
        batch,
        pixels=batch.pixels[rows],
        captions=batch.captions[rows],
        original_size=batch.original_size[rows],
        crop_top_left=batch.crop_top_left[rows],
        keys=batch.keys[rows],
        names=batch.names[rows],
    )


def _figures(
    options: TrainOptions, devices: Devices, training: Training, data: Dataset, losses: deque[float]
) -> Figures:
    name = torch.cuda.get_device_name(devices.device) if devices.device.type == "cuda" else platform.machine()
    return Figures(
        pictures=len(data),
        skipped=len(data.skipped),
        processes=devices.processes,
        loss=sum(losses) / len(losses) if losses else None,
        prediction="Karras et al. 2022" if options.task == "upscaler-x2" else training.sampler.prediction,
        hardware=f"{devices.processes} x {name}",
        max_noise_level=training.max_noise_level,
    )
