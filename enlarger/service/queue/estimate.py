"""How long jobs take: learned from those that ended, per megapixel of the result, and from how far one has come."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from enlarger.service.jobs import Ask

UNKNOWN = 5.0  # seconds of a job before anything was measured
WEIGHT = 0.4  # of the newest measurement
KINDS = 256  # kinds of jobs that are remembered
SURE = 0.25  # the progress from which on a job's own pace tells when it ends
FOLLOWED = ("predict", "restore")  # stages after which another comes, where detail is asked for
T = TypeVar("T")


class Costs:
    """Seconds per megapixel of each kind of job, and how its time falls to its passes; moving averages."""

    def __init__(self) -> None:
        self._costs: OrderedDict[Hashable, float] = OrderedDict()
        self._passes: OrderedDict[Hashable, tuple[float, ...]] = OrderedDict()

    def learn(self, ask: Ask, seconds: float) -> None:
        """A job took this long; one of several in a batch counts with its share."""
        cost = seconds / megapixels(ask)
        for kind in _kinds(ask):
            before = self._costs.pop(kind, cost)
            _keep(self._costs, kind, before + (cost - before) * WEIGHT)

    def learn_passes(self, ask: Ask, seconds: Sequence[float]) -> None:
        """How long each pass of a job took, in order."""
        kind = _shape(ask)
        before = self._passes.pop(kind, None)
        if before is None or len(before) != len(seconds):
            before = tuple(seconds)
        moved = (old + (new - old) * WEIGHT for old, new in zip(before, seconds, strict=True))
        _keep(self._passes, kind, tuple(moved))

    def seconds(self, ask: Ask) -> float:
        """How long a job is expected to take: as those of its kind, or as the most similar kind that is known."""
        for kind in _kinds(ask):
            if kind in self._costs:
                return self._costs[kind] * megapixels(ask)
        return UNKNOWN

    def passes(self, ask: Ask) -> tuple[float, ...] | None:
        """The expected seconds of each pass; None before a job of this kind has ended."""
        return self._passes.get(_shape(ask))


@dataclass
class Pace:
    """How far a running job has come. A pass is one run of a stage; several pictures have several of each."""

    ask: Ask
    costs: Costs
    began: float
    shared: int = 1  # jobs in its batch, itself included
    first: str | None = None  # stage
    stage: str | None = None
    turn: int = 0  # which of its pictures
    done: int = 0
    total: int = 0
    best: float = 0.0  # progress never goes back
    passes: list[float] = field(default_factory=list[float])  # seconds of those that are over
    mark: float = 0.0  # when the present pass began
    heard: float = 0.0  # when something was last heard of it

    def start(self, now: float) -> None:
        """The work begins now: what passed before, such as loading, does not count."""
        if not self.moved:
            self.began = self.mark = self.heard = now
            self.stage = None

    @property
    def moved(self) -> bool:
        return self.total > 0

    def see(self, stage: str, done: int, total: int, now: float) -> None:
        """So much of a stage is done, counted over all pictures of the job."""
        total = max(total, done, 1)
        length = total / _count(self.ask)  # of the stage in one picture
        turn = int(max(done - 1, 0) / length)
        if not self.moved:
            self.first, self.mark = stage, self.began
        elif (stage, turn) != (self.stage, self.turn) or done < self.done:
            self.passes.append(self.heard - self.mark)
            self.mark = self.heard
        self.stage, self.turn, self.done, self.total, self.heard = stage, turn, done, total, now
        self.best = max(self.best, min(self._part((done - turn * length) / length), 0.99))

    def end(self, now: float) -> None:
        """The job has ended well: what it took is remembered."""
        self.costs.learn(self.ask, (now - self.began) / self.shared)
        if self.moved:
            self.costs.learn_passes(self.ask, [*self.passes, self.heard - self.mark, now - self.heard])

    def remaining(self, now: float) -> float:
        """Seconds until it ends, as far as can be told."""
        elapsed = now - self.began
        if self.best < SURE:
            return max(self.costs.seconds(self.ask) * self.shared - elapsed, 0.0)
        known = self.heard - self.began
        return max(known / self.best - elapsed, 0.0)

    def _part(self, present: float) -> float:
        """The share of the work that is done, by the time that its passes are expected to take."""
        over, plan = len(self.passes), self.costs.passes(self.ask)
        if plan is None:
            return (over + present) / max(over + 1, self._usual())
        if over >= len(plan) - 1 or sum(plan) <= 0:
            return 0.99
        return (sum(plan[:over]) + present * plan[over]) / sum(plan)

    def _usual(self) -> int:
        """How many passes a job has, as long as none of its kind has ended."""
        followed = self.first in FOLLOWED and self.ask.options.get("detail") not in (None, 0)
        return (2 if followed else 1) * _count(self.ask)


def megapixels(ask: Ask) -> float:
    """How much a job makes; 1 where the size is not known beforehand."""
    width, height = (1000, 1000) if ask.size is None else ask.size
    return max(width * height, 1) * _count(ask) / 1e6


def _count(ask: Ask) -> int:
    count = ask.options.get("count")
    return count if isinstance(count, int) and count > 0 else 1


def _kinds(ask: Ask) -> tuple[Hashable, ...]:
    """From the same kind to the most distant relative."""
    same = (ask.task, ask.model, ask.options.get("steps"), ask.options.get("detail"))
    return (same, (ask.task, ask.model), ask.task, "any")


def _shape(ask: Ask) -> Hashable:
    return (ask.task, ask.model, ask.options.get("steps"), _count(ask), ask.options.get("detail"))


def _keep(known: OrderedDict[Hashable, T], kind: Hashable, value: T) -> None:
    """Remember a value as the newest; the oldest goes where there are too many."""
    known[kind] = value
    if len(known) > KINDS:
        known.popitem(last=False)
