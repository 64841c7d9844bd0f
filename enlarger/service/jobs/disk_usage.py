"""How much of the disk jobs take, and may come to take: counted beforehand, so that it is never more than allowed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.service.jobs.files import folder_bytes
from enlarger.service.jobs.job import JobSpec, job_folder
from enlarger.service.jobs.progress_estimator import megapixels

BYTES_PER_PIXEL = 8  # of a result that does not compress: colour and alpha of 16 bits
PREVIEW_PIXELS = 512 * 512
FIXED_BYTES = 16 << 10  # of a job's row and of its small files


@dataclass(eq=False)
class DiskUsage:
    """What each job counts for, and what everything else of the service takes: the database above all."""

    max_bytes: float
    other_bytes: int = 0
    by_job: dict[str, int] = field(default_factory=dict[str, int])
    unfinished: set[str] = field(default_factory=set[str])  # those that count for what they may take

    @property
    def total(self) -> int:
        return sum(self.by_job.values()) + self.other_bytes

    def has_room(self, num_bytes: int) -> bool:
        return self.total + num_bytes <= self.max_bytes

    def reset(self, by_job: Mapping[str, int], other_bytes: int) -> None:
        """What was found on the disk; jobs that have not ended keep what they may take."""
        kept = {id: self.by_job[id] for id in self.unfinished}
        self.by_job, self.other_bytes = {**by_job, **kept}, other_bytes

    def expect(self, id: str, num_bytes: int) -> None:
        """A new job may take so much."""
        self.by_job[id] = num_bytes
        self.unfinished.add(id)

    def charge(self, id: str, num_bytes: int) -> None:
        """A job that has ended takes so much."""
        self.by_job[id] = num_bytes
        self.unfinished.discard(id)

    def release(self, id: str) -> None:
        """A job is gone."""
        self.by_job.pop(id, None)
        self.unfinished.discard(id)


def expected_bytes(data: Path, id: str, spec: JobSpec) -> int:
    """What a job takes at most: its files, its text in the row and in its results, and results that do not compress."""
    text = len(json.dumps([spec.options, spec.notes], default=str, ensure_ascii=False).encode())
    count = spec.options.get("count", 1)
    pictures = (3 + count if isinstance(count, int) else 4) * text + int(megapixels(spec) * 1e6) * BYTES_PER_PIXEL
    previews = (spec.previews + spec.live) * PREVIEW_PIXELS
    return folder_bytes(job_folder(data, id)) + pictures + previews + FIXED_BYTES


def database_bytes(data: Path, name: str) -> int:
    """The database with its journal."""
    return sum(path.lstat().st_size for path in data.glob(f"{name}*"))
