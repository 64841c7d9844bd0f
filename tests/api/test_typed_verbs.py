"""The public verbs name their options: they agree with the requests, and a type checker refuses a misspelt one."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import enlarger
from enlarger import requests, verb_options

VERBS: dict[str, tuple[type, Any]] = {
    "upscale": (requests.UpscaleRequest, verb_options.UpscaleOptions),
    "generate": (requests.GenerateRequest, verb_options.GenerateOptions),
    "refine": (requests.RefineRequest, verb_options.RefineOptions),
    "inpaint": (requests.InpaintRequest, verb_options.InpaintOptions),
    "depth": (requests.DepthRequest, verb_options.DepthOptions),
}
GOOD = """
import enlarger
from enlarger import Client, DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

enlarger.upscale("a.png", by=3, model="x2", steps=10, guidance=2.0, seed=1, noise_level=0.5, profile="original")
enlarger.upscale(["a.png", "b.png"], device="cpu", detail=0.5, consistent=False, seed=[1, 2])
enlarger.generate("a cat", model="sd", width=512, height=512, steps=20, upscale=2, handoff=[3.0], negative=["a dog"])
enlarger.refine("a.png", "a cat", model="sd", strength=0.4, score=6.5, count=2, solver="euler", long_prompt=True)
enlarger.inpaint("a.png", "m.png", model="sd", prompt="a cat", feather=2, expand=(0, 8, 0, 8), crop=32, fill="blur")
enlarger.depth("a.png", "a cat", model="sd", strength=0.5, rescale=0.7, depth="d.png")
enlarger.load("sd", device="cpu", precision="float32", offload="model")
enlarger.load_upscaler("x2", device="cpu")(UpscaleRequest("a.png", 2, steps=3))
enlarger.load_generator("sd", refiner="xl", offload="sequential")(GenerateRequest("a cat", steps=3))
enlarger.load_refiner("sd", precision="bfloat16")(RefineRequest("a.png", "a cat", steps=3))
enlarger.load_inpainter("sd")(InpaintRequest("a.png", "m.png", "a cat", steps=3))
enlarger.load_depth("sd", estimator=False)(DepthRequest("a.png", "a cat", steps=3))
with Client("http://localhost") as client:
    client.upscale("a.png", by=2, steps=3)
    client.generate("a cat", steps=3)
    client.refine("a.png", "a cat", strength=0.5)
    client.inpaint("a.png", "m.png", "a cat", steps=3)
"""
BAD = """
import enlarger
from enlarger import Client, DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

client = Client("http://localhost")
enlarger.upscale("a.png", by=3, step=10)
enlarger.generate("a cat", model="sd", widht=512)
enlarger.refine("a.png", "a cat", model="sd", strenght=0.4)
enlarger.inpaint("a.png", "m.png", model="sd", feathers=2)
enlarger.depth("a.png", "a cat", model="sd", guidence=5.0)
enlarger.upscale("a.png", steps="ten")
enlarger.load("sd", devise="cpu")
enlarger.load_upscaler("x2", offload="some")
enlarger.load_generator("sd", refiners="xl")
enlarger.load_refiner("sd", dtype="bfloat16")
enlarger.load_inpainter("sd", precison="bfloat16")
enlarger.load_depth("sd", estimators=False)
UpscaleRequest("a.png", steps=3, guide=2.0)
GenerateRequest("a cat", step=3)
RefineRequest("a.png", strengths=0.3)
InpaintRequest("a.png", "m.png", masks="auto")
DepthRequest("a.png", near="large")
client.upscale("a.png", step=3)
client.generate("a cat", step=3)
client.refine("a.png", "a cat", strenght=0.5)
client.inpaint("a.png", "m.png", "a cat", step=3)
"""


@pytest.mark.parametrize("verb", VERBS)
def test_options_agree_with_the_request(verb: str) -> None:
    """The names and types are the request's, and each option is either named or among them."""
    request, options = VERBS[verb]
    types, found = get_type_hints(request), get_type_hints(options)
    parameters = inspect.signature(getattr(enlarger, verb)).parameters
    assert parameters["options"].kind is inspect.Parameter.VAR_KEYWORD and options.__total__ is False
    named = {item.name for item in fields(request)} & set(parameters)
    assert found == {item.name: types[item.name] for item in fields(request) if item.name not in named}
    for item in fields(request):
        if item.name in named and parameters[item.name].default is not inspect.Parameter.empty:
            assert parameters[item.name].default == item.default


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_raises(verb: str) -> None:
    names = {} if verb == "upscale" else {"model": "nowhere"}
    with pytest.raises(enlarger.InputError, match=r"'magic'; the options are those of .*Request$"):
        getattr(enlarger, verb)("a", magic=1, **names)


def test_a_type_checker_refuses_what_is_misspelt(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(GOOD)
    bad.write_text(BAD)
    root = str(Path(enlarger.__file__).parents[1])
    settings = {"include": ["."], "extraPaths": [root], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False).stdout)
    errors = [(Path(one["file"]).name, one["range"]["start"]["line"]) for one in report["generalDiagnostics"]]
    assert [line for name, line in errors if name == "good.py"] == []
    wrong = range(BAD.splitlines().index('enlarger.upscale("a.png", by=3, step=10)'), len(BAD.splitlines()))
    assert sorted({line for name, line in errors if name == "bad.py"}) == list(wrong)


@pytest.mark.parametrize("old", enlarger.RENAMED)
def test_old_names_warn_and_still_work(old: str) -> None:
    new = enlarger.RENAMED[old]
    with pytest.warns(DeprecationWarning, match=f"enlarger.{old} is now called enlarger.{new}"):
        found = getattr(enlarger, old)
    assert found is getattr(enlarger, new)
