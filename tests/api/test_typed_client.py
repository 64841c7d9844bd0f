"""What a type checker and an editor see of the client: every option by its name and type, and no other."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from enlarger import AsyncClient, Client
from enlarger.client import options
from enlarger.client.endpoints import FOR_UPSCALING, HTTP_NAMES
from enlarger.requests import GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio

import enlarger

client = enlarger.Client("http://127.0.0.1:8997", timeout=None)
made = [
    client.upscale("a.png", 3, prompt="a", negative="b", steps=9, guidance=2.5, seed=1, count=2, detail=0.5),
    client.upscale("a.png", by=2, noise_level=3.0, solver="euler", consistent=False, model="x2", watch=print),
    client.generate("a", width=64, height=64, upscale=2, refiner=True, steps=None),
    client.inpaint("a.png", "b.png", "a", strength=0.5, mask_mode="white"),
    client.refine("a.png", strength=0.4, model="sd"),
]
print(made[0].image.size, client.job("a").current_progress.stage, client.models()[0].aliases, client.health().ready)


async def main() -> None:
    async with enlarger.AsyncClient() as client:
        await client.upscale("a.png", 3, detail=0.5, steps=9)
        await client.generate("a", guidance=2)
        await client.inpaint("a.png", "b.png", strength=1)
        await client.refine("a.png", seed=5)


asyncio.run(main())
"""
WRONG = [
    'client.upscale("a.png", detial=0.5)',
    'client.upscale("a.png", steps="many")',
    'client.upscale("a.png", width=64)',
    'client.generate("a", guidence=2)',
    'client.generate("a", seed=[1, 2])',
    'client.inpaint("a.png")',
    'client.inpaint("a.png", "b.png", mask_mode="black")',
    'client.refine("a.png", strenght=1)',
    "client.upscale_all()",
    'client.result("a", detail=1)',
    'client.upscale("a.png").picture',
    'enlarger.AsyncClient().upscale("a.png", detial=0.5)',
    'enlarger.AsyncClient().generate("a", guidence=2)',
    'enlarger.AsyncClient().inpaint("a.png", "b.png", mask="c.png")',
    'enlarger.AsyncClient().refine("a.png", strenght=1)',
]


def check(script: str, folder: Path) -> list[int]:
    """The lines in which pyright finds an error, from 0."""
    file = folder / "script.py"
    file.write_text(script)
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    return [item["range"]["start"]["line"] for item in report["generalDiagnostics"] if item["severity"] == "error"]


def test_right_options_are_accepted_and_misspelt_ones_rejected(tmp_path: Path) -> None:
    pytest.importorskip("pyright")

    first = SCRIPT.count("\n")
    found = check(SCRIPT + "\n".join(WRONG) + "\n", tmp_path)
    assert sorted(set(found)) == list(range(first, first + len(WRONG)))


SERVED = {*HTTP_NAMES, "width", "height", "mask_mode", "mask_resize"}


@pytest.mark.parametrize(
    ("method", "request_type", "declared"),
    [
        ("upscale", UpscaleRequest, options.UpscaleOptions),
        ("generate", GenerateRequest, options.GenerateOptions),
        ("inpaint", InpaintRequest, options.InpaintOptions),
        ("refine", RefineRequest, options.RefineOptions),
    ],
)
def test_the_options_are_those_of_the_requests_that_a_service_takes(
    method: str, request_type: type, declared: type
) -> None:
    named = set(inspect.signature(getattr(AsyncClient, method)).parameters)
    served = {item.name for item in fields(request_type)} & SERVED
    served -= set() if request_type is UpscaleRequest else FOR_UPSCALING
    assert set(get_type_hints(declared)) == served - named
    for client in (AsyncClient, Client):
        assert inspect.signature(getattr(client, method)) == inspect.signature(getattr(AsyncClient, method))


@pytest.mark.parametrize("name", [name for name in vars(AsyncClient) if not name.startswith("_") and name != "aclose"])
def test_both_clients_have_the_same_methods(name: str) -> None:
    assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__ != ""
