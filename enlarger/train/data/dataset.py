"""A data set whose batches follow from the seed and their number alone, so that a training goes on where it stopped."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from enlarger.errors import InputError, list_names
from enlarger.image.decode import one_line
from enlarger.tasks.latent_diffusion.conditioning import Size
from enlarger.train.data.buckets import bucket_sizes, nearest_bucket
from enlarger.train.data.crops import Crop, cut
from enlarger.train.data.entries import Entries, Entry, describe_skipped
from enlarger.train.data.folder import read_folder_entries
from enlarger.train.data.shards import TAR_SUFFIX, expand_shards, read_shard_entries

WINDOW = 4096  # samples of a shard that are shuffled among themselves: reading stays near one place of the disk
MOST_LOOKED_AT = 1000  # captions in a shard, before it is said that there are none


@dataclass(frozen=True)
class DataOptions:
    """How pictures become batches.

    `bucket_step` divides both sides of all sizes. `caption` is for every picture that has none of its own.
    """

    buckets: bool = True  # by aspect ratio; else all are cut to squares
    bucket_step: int = 64
    center_crop: bool = False  # else anywhere
    random_flip: bool = False  # half of the pictures left to right
    caption: str | None = None
    caption_column: str = "text"
    needs_captions: bool = True


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """N pictures (N, 3, H, W) float32 in -1..1 with their captions, and what SDXL is told of each; sizes (h, w).

    `keys` tell the crops apart: equal ones have equal pixels. `names` say where each comes from.
    """

    pixels: Tensor
    captions: tuple[str, ...]
    original_size: tuple[Size, ...]  # of the file
    crop_top_left: tuple[tuple[int, int], ...]  # in the resized picture
    target_size: Size
    keys: tuple[str, ...]
    names: tuple[str, ...] = ()

    def listed_names(self) -> str:
        """In brackets, for a message; empty where they are not known."""
        return f" ({list_names([one_line(name) for name in self.names])})" if self.names else ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures in their buckets. `skipped` grows as broken pictures are met: their names, and why."""

    entries: tuple[Entry, ...]
    runs: tuple[range, ...]
    bucket_of: tuple[Size, ...]  # of each entry
    options: DataOptions
    skipped: dict[str, str]

    def __len__(self) -> int:
        """Pictures that were not skipped when the data were opened."""
        return len(self.entries)

    def batches_per_epoch(self, batch: int) -> int:
        """After so many batches each picture was there at least once; the last of a bucket is filled up."""
        return sum(-(-pictures // batch) for pictures in Counter(self.bucket_of).values())

    def batches(
        self, batch: int, seed: int, start: int = 0, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[TrainingBatch]:
        """Endless batches from number `start` on, each of one bucket.

        Of `world_size` processes each gets its part of the rows of the same batches. Raises InputError where the rows
        do not divide, or no picture can be read.
        """
        if batch < 1 or batch % world_size:
            raise InputError(f"batch is {batch}, expected a multiple of the {world_size} processes; give another")
        part = slice(rank * batch // world_size, (rank + 1) * batch // world_size)
        length = self.batches_per_epoch(batch)
        first_epoch, place = divmod(start, length)
        for epoch in count(first_epoch):
            planned = self._epoch(batch, seed, epoch)
            for i in range(place, length):
                draws = np.random.default_rng([seed, epoch * length + i]).random((batch, 3))
                yield self._load(planned[i][part], draws[part])
            place = 0

    def _epoch(self, batch: int, seed: int, epoch: int) -> list[list[int]]:
        """The entries of each batch of an epoch: buckets fill up in the order of the shuffled data."""
        waiting: dict[Size, list[int]] = {}
        members: dict[Size, list[int]] = {}
        full: list[list[int]] = []
        for index in self._shuffled(np.random.default_rng([seed, epoch, 1])):
            bucket = self.bucket_of[index]
            members.setdefault(bucket, []).append(index)
            rows = waiting.setdefault(bucket, [])
            rows.append(index)
            if len(rows) == batch:
                full.append(waiting.pop(bucket))
        for bucket, rows in waiting.items():
            repeated = members[bucket] * (batch // len(members[bucket]) + 1)
            full.append((rows + repeated)[:batch])
        return full

    def _shuffled(self, draw: np.random.Generator) -> Iterator[int]:
        """Runs in any order, and each window of a run in any order; a single run is shuffled as a whole."""
        whole = len(self.runs) == 1 and not self.entries_lie_in_shards
        for run in map(int, draw.permutation(len(self.runs))):
            members = self.runs[run]
            step = len(members) if whole else WINDOW
            for first in range(0, len(members), max(1, step)):
                window = members[first : first + step]
                yield from (window[int(i)] for i in draw.permutation(len(window)))

    @property
    def entries_lie_in_shards(self) -> bool:
        return not isinstance(self.entries[0].picture, Path)

    def _load(self, rows: Sequence[int], draws: np.ndarray) -> TrainingBatch:
        crops, captions, names = zip(
            *(self._read(row, draw) for row, draw in zip(rows, draws, strict=True)), strict=True
        )
        return TrainingBatch(
            torch.stack([crop.pixels for crop in crops]),
            captions,
            tuple(crop.original_size for crop in crops),
            tuple(crop.top_left for crop in crops),
            self.bucket_of[rows[0]],
            tuple(crop.key for crop in crops),
            names,
        )

    def _read(self, row: int, draw: np.ndarray) -> tuple[Crop, str, str]:
        """A picture's crop, caption and name; where it is broken, those of the next whole one in its bucket."""
        bucket = self.bucket_of[row]
        for index in chain(range(row, len(self)), range(row)):
            entry = self.entries[index]
            if self.bucket_of[index] != bucket or entry.name in self.skipped:
                continue
            try:
                return self._cut(entry, bucket, draw), entry.read_caption() or self.options.caption or "", entry.name
            except (InputError, OSError) as error:
                self.skipped[entry.name] = str(error)
        raise InputError(
            f"no picture of {bucket[1]} x {bucket[0]} pixels can be read; {describe_skipped(self.skipped)}"
        )

    def _cut(self, entry: Entry, bucket: Size, draw: np.ndarray) -> Crop:
        place = (0.5, 0.5) if self.options.center_crop else (float(draw[0]), float(draw[1]))
        return cut(entry.content(), bucket, place, flip=self.options.random_flip and draw[2] < 0.5)


def open_dataset(path: str | Path, resolution: int, options: DataOptions = DataOptions()) -> Dataset:
    """Pictures with captions from a folder, or from WebDataset shards: a folder of tars, a tar, braces or stars.

    Raises InputError, before anything is computed, where there is no picture, or no caption at all.
    """
    sizes = bucket_sizes(resolution, options.bucket_step)
    found = _entries(Path(path), options)
    if not found.entries:
        reason = f"; {describe_skipped(found.skipped)}" if found.skipped else ""
        raise InputError(f"{path}: no pictures{reason}; give a folder of pictures with captions, or WebDataset tars")
    if options.needs_captions and options.caption is None and not _has_caption(found.entries):
        looked_at = min(len(found.entries), MOST_LOOKED_AT)
        raise InputError(
            f"{path}: none of {looked_at} pictures has a caption; write each into a .txt file beside its picture, into "
            f"metadata.jsonl or a shard's .json ({options.caption_column}), or give one caption for all"
        )
    sizes = sizes if options.buckets else ((resolution, resolution),)
    buckets = tuple(nearest_bucket(entry.size, sizes) for entry in found.entries)
    return Dataset(found.entries, found.runs, buckets, options, dict(found.skipped))


def _has_caption(entries: Sequence[Entry]) -> bool:
    """Whether any of the first pictures has one that can be read and says something."""
    for entry in islice((each for each in entries if each.caption is not None), MOST_LOOKED_AT):
        try:
            if entry.read_caption():
                return True
        except (InputError, OSError):
            continue
    return False


def _entries(path: Path, options: DataOptions) -> Entries:
    if path.is_dir():
        found = read_folder_entries(path, options.caption_column)
        shards = sorted(path.glob(f"*{TAR_SUFFIX}"))
        if found.entries and shards:
            raise InputError(
                f"{path}: holds pictures and {len(shards)} tars; give one or the other, in a folder of its own"
            )
        return read_shard_entries(shards, options.caption_column) if shards else found
    if path.suffix != TAR_SUFFIX:
        found = "no such folder" if not path.exists() else "is a file"
        raise InputError(f"{path}: {found}; give a folder of pictures with captions, or uncompressed WebDataset tars")
    return read_shard_entries(expand_shards(str(path)), options.caption_column)
