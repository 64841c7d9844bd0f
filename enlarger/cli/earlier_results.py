"""Pictures in a folder that an earlier run has made there, which the next one would make larger still."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from enlarger.cli.inputs import InputFile, PassedOver
from enlarger.image.decode import FileSource, open_image
from enlarger.image.generation import read_metadata

REASON = "results of an earlier run, which --again takes too"
RESULT_NAME = re.compile(r".+-(x[0-9.]+|[0-9]+x[0-9]+|[0-9]+px|[0-9.]+mp|refined|depth|inpaint)(-[0-9]+)?")


def without_earlier_results(
    found: Sequence[InputFile], passed_over: Sequence[PassedOver]
) -> tuple[list[InputFile], list[PassedOver]]:
    """The files without those found in folders that say that enlarger has made them, which are passed over."""
    results = [file for file in found if not file.is_named_by_user and is_earlier_result(file.path)]
    places = {file.path for file in results}
    kept = [file for file in found if file.path not in places]
    if not kept and results:
        text = f"all {len(results)} pictures here are {REASON}"
        kept = [replace(results[0], path=results[0].path.parent, is_named_by_user=True, error=text)]
    return kept, [*passed_over, *(PassedOver(file.path, REASON) for file in results)]


def is_earlier_result(path: Path, read: Callable[[Path], FileSource] = Path) -> bool:
    """Whether a file has the name of a result, and says what made it; `read` gives what lies elsewhere."""
    if RESULT_NAME.fullmatch(path.stem) is None:
        return False
    try:
        with open_image(read(path)) as (image, _):
            return "task" in (read_metadata(image) or {})
    except Exception:  # noqa: BLE001 - readers raise anything on files that are no picture of ours
        return False
