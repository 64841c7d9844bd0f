"""The folder of an evaluation: the settings its pictures were made with, figures as CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError
from enlarger.image.atomic_write import atomic_write
from enlarger.strict_json import Json, is_array, is_object, read_json, short_repr

SETTINGS_FILE = "settings.json"
RESULTS_STEM = "results"
Row = Mapping[str, float | int | str | None]


@dataclass(frozen=True)
class EvaluationResults:
    """Rows of figures under the same names; None where one was not measured."""

    settings: Json
    rows: tuple[Row, ...]

    def text_cells(self) -> list[list[str]]:
        """The names, then the rows as a table shows them; what nobody measured is left out."""
        names = [name for name in self.rows[0] if any(row[name] is not None for row in self.rows)]
        return [names, *([_cell(row[name]) for name in names] for row in self.rows)]

    def json_rows(self) -> list[dict[str, float | int | str | None]]:
        """The rows as JSON holds them: the PSNR of equal pictures, which is infinite, is the text "inf"."""
        return [
            {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
            for row in self.rows
        ]

    def save(self, folder: Path) -> None:
        """Write `results.csv` and `results.json`, each whole or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        document = {"settings": self.settings, "rows": self.json_rows()}
        for name, content in ((f"{RESULTS_STEM}.csv", text.getvalue()), (f"{RESULTS_STEM}.json", _dumped(document))):
            write_text(folder / name, content)


def read_results(path: Path) -> EvaluationResults:
    """An earlier evaluation's, from its folder or its `results.json`. Raises CheckpointError or InputError."""
    file = path / f"{RESULTS_STEM}.json" if path.is_dir() else path
    found = read_json(file)
    settings, rows = found.get("settings"), found.get("rows")
    if not is_object(settings) or not is_array(rows) or not rows or not all(is_object(row) for row in rows):
        raise InputError(f"{file}: holds no figures of an evaluation; give a folder that enlarger evaluate wrote")
    return EvaluationResults(settings, tuple(row for row in rows if is_object(row)))


def prepare_folder(folder: Path, settings: Json) -> None:
    """Make the folder, or go on in one of the same settings.

    Raises InputError for one of others, naming them, and for one that holds anything else.
    """
    file = folder / SETTINGS_FILE
    if not file.exists():
        _make_empty(folder)
        write_text(file, _dumped(settings))
        return
    earlier = read_json(file)
    different = [name for name in settings if earlier.get(name) != settings[name]]
    if different:
        name = different[0]
        found, wanted = short_repr(earlier.get(name)), short_repr(settings[name])
        raise InputError(
            f"{folder}: its pictures were made with {name} {found}, not {wanted}; give another folder, or the same "
            "settings to go on"
        )


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = next(folder.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be a folder of results ({error.strerror or error}); give another place"
        ) from error
    if found is not None:
        raise InputError(
            f"{folder}: holds {found.name} and no {SETTINGS_FILE}, expected a new folder, an empty one, or one that "
            "enlarger evaluate wrote; give another"
        )


def write_text(path: Path, text: str) -> None:
    """Raises InputError where the disk is full or the folder cannot be written."""
    try:
        with atomic_write(path) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room and run again") from error


def _dumped(document: Json) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n"


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def mean_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over pictures, leaving out those without it (NaN); NaN where none has it."""
    names = rows[0].keys()
    finite = {name: [row[name] for row in rows if not math.isnan(row[name])] for name in names}
    return {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}
