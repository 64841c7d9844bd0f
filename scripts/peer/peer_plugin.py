"""pytest plugin: `from diffusers import StableDiffusionPipeline` gives ours; models stay diffusers' and transformers'.

PEER_MODE=theirs runs diffusers itself and records what its pipelines return, PEER_MODE=ours compares.
PEER_RECORD is the folder for both, PEER_HUB that of the stand-ins.
Each test's outcome is a line of `results-MODE.jsonl`.
"""

import functools
import json
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peer_hub as hub
import pytest
import torch

MODE = os.environ.get("PEER_MODE", "ours")
RECORD = Path(os.environ["PEER_RECORD"])
PIPELINES = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
]
AUTO = ["DiffusionPipeline", "AutoPipelineForText2Image", "AutoPipelineForImage2Image", "AutoPipelineForInpainting"]
RECORD.mkdir(parents=True, exist_ok=True)
RESULTS = RECORD / f"results-{MODE}.jsonl"
REAL = {name: getattr(diffusers, name) for name in PIPELINES + AUTO}
RETURNED: dict[str, list[Any]] = {}  # pictures by test


def _arrays(value: Any) -> list[np.ndarray[Any, Any]]:
    if torch.is_tensor(value):
        return [value.detach().float().cpu().numpy()]
    if isinstance(value, np.ndarray):
        return [np.asarray(value, np.float32)]
    return [np.asarray(one, np.float32) / 255 for one in value if hasattr(one, "size")]


def _test_name() -> str:
    said, _, phase = os.environ.get("PYTEST_CURRENT_TEST", "outside").rpartition(" (")
    return said.rsplit("::", 1)[0] + "::setup" if phase.startswith("setup") else said


def recorded(kind: type[Any]) -> None:
    """Keep what calls of a pipeline return, for the test that makes them."""
    call: Any = kind.__call__

    @functools.wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = call(self, *args, **kwargs)
        RETURNED.setdefault(_test_name(), []).append(_arrays(made[0]))
        return made

    kind.__call__ = run


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: Any) -> None:
    for name in list(RETURNED):
        flat = {f"{i}_{j}": a for i, one in enumerate(RETURNED.pop(name)) for j, a in enumerate(one)}
        path = RECORD / (re.sub(r"[^A-Za-z0-9]+", "_", name)[-180:] + ".npz")
        if MODE == "theirs":
            np.savez_compressed(path, **flat)
        elif path.exists():
            known = np.load(path)
            shared = [key for key in flat if key in known]
            same = [float(np.abs(known[k] - flat[k]).max()) for k in shared if known[k].shape == flat[k].shape]
            worst = max(same, default=0.0) if len(same) == len(shared) else float("inf")
            with (RECORD / "differences.jsonl").open("a") as out:
                out.write(json.dumps({"test": name, "calls": len(shared), "worst": worst}) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, None]:
    report = (yield).get_result()
    if report.when == "call" or report.outcome != "passed":
        said = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"
        with RESULTS.open("a") as out:
            out.write(json.dumps({"test": item.nodeid, "outcome": report.outcome, "said": said[:600]}) + "\n")


hub.install(REAL)
if MODE == "theirs":
    for each in PIPELINES:
        recorded(REAL[each])
else:
    import enlarger.diffusers as face
    import enlarger.diffusers.pipelines.pipeline_utils as face_pipeline
    import enlarger.diffusers.pipelines.text_pipeline as face_text
    from enlarger.diffusers.schedulers import SCHEDULER_CLASSES

    for each in PIPELINES:
        recorded(getattr(face, each))
    for each in [*PIPELINES, *AUTO, *SCHEDULER_CLASSES]:
        setattr(diffusers, each, getattr(face, each))
    face_pipeline.log = diffusers.utils.logging.get_logger("diffusers.pipelines.pipeline_utils")
    face_text.log = diffusers.utils.logging.get_logger("diffusers.pipelines.stable_diffusion")
    hub.install_ours([getattr(face, each) for each in [*AUTO, "CLIPTokenizer"]])
