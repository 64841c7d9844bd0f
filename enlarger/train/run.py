"""A training from its options to its result: everything is checked, then the loop runs, then a folder appears."""

import json
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn

from enlarger.checkpoint.folder.save import save_folder
from enlarger.errors import InputError, NonFinite
from enlarger.image.atomic_write import atomic_write
from enlarger.runtime.runtime import resolve_device
from enlarger.train.card import Figures, card
from enlarger.train.data import DataOptions, Dataset, TrainingBatch, open_dataset
from enlarger.train.devices import Devices, choose_devices
from enlarger.train.draws import draws_of_step
from enlarger.train.loop import TrainedStep, new_state, train_steps
from enlarger.train.lora import save_lora
from enlarger.train.options import TrainOptions
from enlarger.train.samples import write_samples
from enlarger.train.start import Training, start, trained_components
from enlarger.train.state import Settings, State

LAST_LOSSES = 100  # whose mean is shown
LOG_EVERY = 10  # steps
LORA_NAME = "pytorch_lora_weights.safetensors"


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
        return f"{len(self.rows)} pictures{described}"


def train(options: TrainOptions, watch: TrainingWatch = no_watch) -> Path:
    """Train as asked, and write a folder in diffusers' layout, or a LoRA's file; its path.

    State, log and samples lie in `options.work`. Raises InputError and Unsupported, before the first step, for what
    cannot be: a base of another kind, data without pictures, a place that is taken.
    """
    _check_place(options)
    devices = choose_devices(resolve_device(options.device), options.precision, options.tracker, options.work)
    training = start(options, devices.device)
    data = open_dataset(options.data, options.resolution, _data_options(options, training))
    state = new_state(training.module.to(devices.device), options.recipe)
    settings, path = options.fixed_settings(devices.processes), options.work / "state.safetensors"
    first = state.resume(path, settings) if options.resume else 0
    devices.wait()  # until all have read it
    losses = _Run(options, devices, training, data, state).steps(first, settings, path, watch)
    if devices.rank == 0:
        figures = _figures(options, devices, training, data, losses)
        write_result(options, training, state.result, card(options, figures))
    devices.wait()
    devices.close()
    return options.out


def write_result(options: TrainOptions, training: Training, module: nn.Module, readme: str) -> None:
    """The folder that diffusers loads, with its card; of a LoRA one file, and its card where it is a folder."""
    out = options.out
    if options.task == "lora":
        path = out if out.suffix == ".safetensors" else out / LORA_NAME
        save_lora(module, path, options.lora, options.lora_layout)
    else:
        save_folder(trained_components(training, module), out)
    with atomic_write(out.with_suffix(".md") if out.is_file() else out / "README.md") as stream:
        stream.write(readme.encode())


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
        options.work.mkdir(parents=True, exist_ok=True)
        rows = rows_of_steps(self.data, options, self.devices, first, options.steps)
        try:
            for done in train_steps(self.state, self.loss, rows, options.recipe, first, self.devices):
                step = done.step
                losses.append(done.loss)
                self.devices.log({"loss": done.loss, "rate": done.rate, "gradient": done.norm}, step)
                if self.devices.rank == 0:
                    progress = self._progress(done, losses)
                    watch(progress)
                    if monotonic() - saved > options.save_every or step == options.steps:
                        self.state.save(path, step, settings)
                        saved = monotonic()
                    self._note(progress)
        except NonFinite:
            if self.devices.rank == 0 and step > first:
                self.state.save(path, step, settings)  # its last step changed nothing
            raise
        return losses

    def _progress(self, done: TrainedStep, losses: deque[float]) -> TrainingProgress:
        memory = used_memory(self.devices.device)
        loss = sum(losses) / len(losses)
        return TrainingProgress(done.step, self.options.steps, loss, done.rate, memory, self.data.skipped)

    def loss(self, network: nn.Module, rows: Rows, progress: float) -> Tensor:
        """That of some rows; what is drawn for them is the same each time it is asked for."""
        return self.training.objective(network, rows.batch, draws_of_step(rows.seed, rows.step, rows.rows))

    def _note(self, progress: TrainingProgress) -> None:
        """A line of the log, and samples, where they are due."""
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


def used_memory(device: torch.device) -> int:
    """Bytes at most so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _check_place(options: TrainOptions) -> None:
    """Raises InputError where the result would lie on something, or an earlier training's state would be lost."""
    out, state = options.out, options.work / "state.safetensors"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already exists; choose another place for the result")
    if options.task != "lora" and out.suffix == ".safetensors":
        raise InputError(f"{out}: the result is a folder, only a LoRA is a file; leave the ending out")
    if state.exists() and not options.resume:
        raise InputError(f"{options.work}: holds the state of a training; add --resume to go on, or give another --out")


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
    )
