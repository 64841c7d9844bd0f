"""The official weight files' keys and shapes, and their JSON configurations."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class KeyTable:
    """The keys of one or more equal weight files."""

    files: tuple[str, ...]  # repository/component
    shapes: Mapping[str, tuple[int, ...]]
    old_names: Mapping[str, str]  # key -> its name in files saved before the attention rename


@cache
def key_tables() -> tuple[KeyTable, ...]:
    """Every network of every official repository; a table starts where the first column is filled."""
    with gzip.open(DATA / "reference" / "keys.tsv.gz", "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    starts = [index for index, row in enumerate(rows) if row[0]]
    return tuple(_table(rows[a:b]) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True))


def _table(rows: list[list[str]]) -> KeyTable:
    shapes = {key: tuple(int(size) for size in shape.split("x")) for _, key, shape, _ in rows}
    return KeyTable(tuple(rows[0][0].split(",")), shapes, {key: old for _, key, _, old in rows if old})


def table_of(file: str) -> KeyTable:
    """The table of `repository/component`."""
    return next(table for table in key_tables() if file in table.files)


def config_of(file: str) -> dict[str, Any]:
    """The JSON configuration of `repository/component`."""
    return json.loads((DATA / "configs" / f"{file}.json").read_text())
