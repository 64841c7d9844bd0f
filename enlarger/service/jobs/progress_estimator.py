"""How long jobs take: learned from those that ended, per megapixel of the result, and from how far one has come."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from enlarger.service.jobs.job import JobSpec

DEFAULT_SECONDS = 5.0  # seconds of a job before anything was measured
FIXED_MEGAPIXELS = 0.05  # what each job takes whatever its size, as if it had so many more
SMOOTHING = 0.4  # of the newest measurement
MAX_KEYS = 256  # kinds of jobs that are remembered
RELIABLE_PROGRESS = 0.25  # the progress from which on a job's own speed says when it ends
MAX_GROWTH = 4.0  # how many times larger than any measured job one may be to be judged by it
FIRST_PROGRESS = 0.02  # the same for a job of a model that was never measured
STAGES_BEFORE_DETAIL = ("predict", "restore")  # stages after which another comes, where detail is asked for
T = TypeVar("T")


class DurationStats:
    """Seconds per megapixel of each kind of job, and how its time falls to its passes; moving averages."""

    def __init__(self) -> None:
        self._seconds_per_megapixel: OrderedDict[Hashable, float] = OrderedDict()
        self._largest_megapixels: OrderedDict[Hashable, float] = OrderedDict()
        self._pass_seconds: OrderedDict[Hashable, tuple[float, ...]] = OrderedDict()

    def record(self, spec: JobSpec, seconds: float) -> None:
        """A job took this long; one of several in a batch counts with its share."""
        size, exact = megapixels(spec), _duration_keys(spec)[0]
        _store_newest(self._largest_megapixels, exact, max(size, self._largest_megapixels.pop(exact, 0.0)))
        seconds_per_megapixel = seconds / (size + FIXED_MEGAPIXELS)
        for key in _duration_keys(spec):
            average = self._seconds_per_megapixel.pop(key, seconds_per_megapixel)
            _store_newest(self._seconds_per_megapixel, key, average + (seconds_per_megapixel - average) * SMOOTHING)

    def record_passes(self, spec: JobSpec, seconds: Sequence[float]) -> None:
        """How long each pass of a job took, in order."""
        key = _passes_key(spec)
        averages = self._pass_seconds.pop(key, None)
        if averages is None or len(averages) != len(seconds):
            averages = tuple(seconds)
        updated = (old + (new - old) * SMOOTHING for old, new in zip(averages, seconds, strict=True))
        _store_newest(self._pass_seconds, key, tuple(updated))

    def expected_seconds(self, spec: JobSpec) -> float:
        """How long a job is expected to take: as those of its kind, or as the most similar kind that is known."""
        for key in _duration_keys(spec):
            if key in self._seconds_per_megapixel:
                return self._seconds_per_megapixel[key] * (megapixels(spec) + FIXED_MEGAPIXELS)
        return DEFAULT_SECONDS

    def is_measured(self, spec: JobSpec) -> bool:
        """Whether a job of this very kind has ended that was not much smaller, so that its time is no guess."""
        largest = self._largest_megapixels.get(_duration_keys(spec)[0], 0.0)
        return megapixels(spec) <= MAX_GROWTH * largest

    def expected_pass_seconds(self, spec: JobSpec) -> tuple[float, ...] | None:
        """The expected seconds of each pass; None before a job of this kind has ended."""
        return self._pass_seconds.get(_passes_key(spec))


@dataclass
class ProgressEstimator:
    """How far a running job has come. A pass is one run of a stage; several pictures have several of each."""

    spec: JobSpec
    durations: DurationStats
    started_at: float
    batch_size: int = 1  # jobs in its batch, itself included
    first_stage: str | None = None  # stage
    stage: str | None = None
    image_index: int = 0  # which of its pictures
    done: int = 0
    total: int = 0
    progress: float = 0.0  # progress never goes back
    finished_pass_seconds: list[float] = field(default_factory=list[float])  # seconds of those that are over
    pass_started_at: float = 0.0  # when the present pass began
    updated_at: float = 0.0  # when something was last heard of it

    def start(self, now: float) -> None:
        """The work begins now: what passed before, such as loading, does not count."""
        if not self.has_progress:
            self.started_at = self.pass_started_at = self.updated_at = now
            self.stage = None

    @property
    def has_progress(self) -> bool:
        return self.total > 0

    def update(self, stage: str, done: int, total: int, now: float) -> None:
        """So much of a stage is done, counted over all pictures of the job."""
        total = max(total, done, 1)
        steps_per_image = total / _num_images(self.spec)  # of the stage in one picture
        image_index = int(max(done - 1, 0) / steps_per_image)
        if not self.has_progress:
            self.first_stage, self.pass_started_at = stage, self.started_at
        elif (stage, image_index) != (self.stage, self.image_index) or done < self.done:
            self.finished_pass_seconds.append(self.updated_at - self.pass_started_at)
            self.pass_started_at = self.updated_at
        self.stage, self.image_index, self.done, self.total, self.updated_at = stage, image_index, done, total, now
        self.progress = max(
            self.progress, min(self._fraction_done((done - image_index * steps_per_image) / steps_per_image), 0.99)
        )

    def finish(self, now: float) -> None:
        """The job has ended well: what it took is remembered."""
        self.durations.record(self.spec, (now - self.started_at) / self.batch_size)
        if self.has_progress:
            self.durations.record_passes(
                self.spec, [*self.finished_pass_seconds, self.updated_at - self.pass_started_at, now - self.updated_at]
            )

    def remaining_seconds(self, now: float) -> float:
        """Seconds until it ends, as far as is known."""
        elapsed = now - self.started_at
        is_measured = self.durations.is_measured(self.spec)
        if self.progress < (RELIABLE_PROGRESS if is_measured else FIRST_PROGRESS):
            return max(self.durations.expected_seconds(self.spec) * self.batch_size - elapsed, 0.0)
        measured = self.updated_at - self.started_at
        return max(measured / self.progress - elapsed, 0.0)

    def eta_seconds(self, now: float) -> float | None:
        """`remaining_seconds`, where they are of this model's own pace; else None."""
        is_known = self.progress >= FIRST_PROGRESS or self.durations.is_measured(self.spec)
        return self.remaining_seconds(now) if is_known else None

    def _fraction_done(self, pass_fraction: float) -> float:
        """The share of the work that is done, by the time that its passes are expected to take."""
        finished, expected = len(self.finished_pass_seconds), self.durations.expected_pass_seconds(self.spec)
        if expected is None:
            return (finished + pass_fraction) / max(finished + 1, self._default_num_passes())
        if finished >= len(expected) - 1 or sum(expected) <= 0:
            return 0.99
        return (sum(expected[:finished]) + pass_fraction * expected[finished]) / sum(expected)

    def _default_num_passes(self) -> int:
        """How many passes a job has, as long as none of its kind has ended."""
        has_detail_pass = self.first_stage in STAGES_BEFORE_DETAIL and self.spec.options.get("detail") not in (None, 0)
        return (2 if has_detail_pass else 1) * _num_images(self.spec)


def megapixels(spec: JobSpec) -> float:
    """How much a job makes; 1 where the size is not known beforehand."""
    width, height = (1000, 1000) if spec.size is None else spec.size
    return max(width * height, 1) * _num_images(spec) / 1e6


def _num_images(spec: JobSpec) -> int:
    count = spec.options.get("count")
    return count if isinstance(count, int) and count > 0 else 1


def _duration_keys(spec: JobSpec) -> tuple[Hashable, ...]:
    """From the same kind to the most distant relative."""
    exact = (spec.task, spec.model, spec.options.get("steps"), spec.options.get("detail"))
    return (exact, (spec.task, spec.model), spec.task, "any")


def _passes_key(spec: JobSpec) -> Hashable:
    return (spec.task, spec.model, spec.options.get("steps"), _num_images(spec), spec.options.get("detail"))


def _store_newest(averages: OrderedDict[Hashable, T], key: Hashable, value: T) -> None:
    """Remember a value as the newest; the oldest goes where there are too many."""
    averages[key] = value
    if len(averages) > MAX_KEYS:
        averages.popitem(last=False)
