"""The benchmarks run: each scenario in a tiny form, in this process, and the report of what they measured."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _harness, _side, report, run, solvers, start_up
from benchmarks._harness import Row
from tests.support import tiny, tiny_x4, tiny_xl

FOLDERS: dict[str, dict[str, Callable[[], Path]]] = {
    "x4": {"stable-diffusion-x4-upscaler": tiny_x4.x4_folder},
    "text_to_image": {"stable-diffusion-v1-5": tiny.sd1_folder},
    "inpaint": {"stable-diffusion-2-inpainting": tiny.inpaint_folder},
    "sdxl": {"sdxl/base": tiny_xl.base_folder, "sdxl/refiner": tiny_xl.refiner_folder},
}


def weights(name: str, place: Path) -> str:
    """Tiny folders where a scenario looks for its own."""
    for path, folder in FOLDERS.get(name, {"sd-x2-latent-upscaler": tiny.x2_folder}).items():
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).symlink_to(folder(), target_is_directory=True)
    return str(place)


def inline(row: Row) -> dict[str, float]:
    """A side in this process."""
    if row.job.engine == "absent":
        raise RuntimeError("no engine is called absent")
    threads = torch.get_num_threads()
    try:
        return _side.measure(replace(row.job, threads=1))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", run.SCENARIOS)
def test_a_scenario_runs(name: str, tmp_path: Path) -> None:
    size = "16" if name == "x4" else "64"
    rows = ["face", "float32"] if name == "x2" else ["float32"]
    options = ["--size", size, "--steps", "2", "--rounds", "1", "--rows", *rows]
    run.main([name, *options, "--folder", weights(name, tmp_path), "--results", str(tmp_path)], inline)
    (path,) = tmp_path.glob("*.json")
    measured = json.loads(path.read_text())
    assert [row["name"] for row in measured["rows"]] == ["diffusers", *rows]
    theirs, *_, native = measured["rows"]
    assert theirs["ratios"]["run"] == 1 and theirs["difference"] == 0
    assert native["run"] > 0 and native["peak"] > 0
    if name == "x2":
        assert measured["rows"][1]["difference"] < 1e-3, "the same calls on the same weights give the same picture"
    if name == "x2":  # diffusers blends tiles in the large one
        assert native["psnr"] > 45, "of 8 bits"


def test_another_build_and_a_side_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.ROWS, "face", {"library": "native", "engine": "absent"})
    options = ["--size", "64", "--steps", "1", "--rounds", "1", "--rows", "face", "--against", str(tmp_path)]
    run.main(["x2", *options, "--folder", weights("x2", tmp_path), "--results", str(tmp_path)], inline)
    rows = json.loads((tmp_path / "x2.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["diffusers", "face", f"face of {tmp_path.name}"]
    assert rows[1]["failed"] == "no engine is called absent"
    assert "not run: no engine is called absent" in "\n".join(run.table(rows))
    planned = run.plan(_side.Job("x2", "diffusers", "", 64, 1, 1.0, 1), ["float32"], [str(tmp_path), "python3.13"])
    assert [(row.python, row.path) for row in planned[2:]] == [
        (planned[0].python, str(tmp_path.resolve())),
        ("python3.13", ""),
    ]


def test_a_side_is_a_program_of_its_own() -> None:
    job = _side.Job("x2", "native", "/no/such/folder", 64, 1, 1.0, 1)
    assert json.loads(json.dumps(asdict(job)))["folder"] == "/no/such/folder"
    with pytest.raises(RuntimeError, match="/no/such/folder"):
        _harness.run_side(Row("native", job))


def test_solvers_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "CALLS", (8, 20, 50))  # those that the table shows
    solvers.main(["--samples", "4", "--converged", "40", "--results", str(tmp_path)])
    options = ["--size", "64", "--steps", "1", "--rounds", "1", "--rows", "face"]
    run.main(["x2", *options, "--folder", weights("x2", tmp_path), "--results", str(tmp_path)], inline)
    measured: dict[str, Any] = {"name": "start_up", "date": "2026-01-01", "machine": _harness.machine(1)}
    rows = start_up.measure({"nothing": (["true"], "")}, 1)
    (tmp_path / "start_up.json").write_text(json.dumps(measured | {"settings": {"rounds": 2}, "rows": rows}))
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main(["--results", str(tmp_path), "--document", str(document)])
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for heading in ("### solvers", "### start_up", "### x2"):
        assert heading in text
    assert (tmp_path / report.PLOT).is_file() and (tmp_path / report.CURVES).is_file()
    report.main(["--results", str(tmp_path), "--document", str(document)])
    assert document.read_text() == text
