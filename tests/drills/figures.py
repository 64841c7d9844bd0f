"""What a drill measured, what it must be, and both as a Markdown table."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure with its bar; a figure without one is for information."""

    what: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None
    loose: bool = False  # times, and what a short form is too short for: there the bar may be given slack

    def good(self, slack: float = 1.0) -> bool:
        """Whether it keeps its bar; `slack` multiplies loose ones."""
        most = self.most if self.most is None or not self.loose else self.most * slack
        return (most is None or self.value <= most) and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        return f"{self.what}: {number(self.value)}{self.tail} (bar: {self.bar or 'none'})"

    @property
    def tail(self) -> str:
        return f" {self.unit}" if self.unit else ""

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.least is not None and self.least == self.most:
            return f"{number(self.least)}{self.tail}"
        ends = [] if self.least is None else [f">= {number(self.least)}{self.tail}"]
        return ", ".join(ends if self.most is None else [*ends, f"<= {number(self.most)}{self.tail}"])


def exactly(what: str, value: float, expected: float, unit: str = "") -> Figure:
    """A figure that must be one number."""
    return Figure(what, value, unit, most=expected, least=expected)


def share(what: str, part: int, whole: int) -> Figure:
    """A count that must be all of them."""
    return exactly(f"{what}, of {whole:,}", part, whole)


def none(what: str, found: int) -> Figure:
    """A count that must be 0."""
    return exactly(what, found, 0)


def seconds(what: str, value: float, most: float | None = None) -> Figure:
    return Figure(what, value, "s", most=most, loose=True)


def millis(what: str, value: float, most: float | None = None) -> Figure:
    """A time and its bar, given in seconds, told in milliseconds."""
    return Figure(what, value * 1e3, "ms", most=None if most is None else most * 1e3, loose=True)


def mebibytes(what: str, value: float, most: float | None = None) -> Figure:
    """An amount and its bar, given in bytes."""
    return Figure(what, value / 2**20, "MiB", most=None if most is None else most / 2**20)


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of all are no larger than."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def number(value: float) -> str:
    """As short as it is true: whole numbers whole, others with three digits."""
    if float(value).is_integer():
        return f"{int(value):,}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def table(figures: Iterable[Figure]) -> str:
    """The figures as Markdown."""
    lines = ["| measured | bar | found | |", "| --- | --- | --- | --- |"]
    for each in figures:
        mark = "" if not each.bar else "kept" if each.good() else "**missed**"
        lines.append(f"| {each.what} | {each.bar} | {number(each.value)}{each.tail} | {mark} |")
    return "\n".join(lines)
