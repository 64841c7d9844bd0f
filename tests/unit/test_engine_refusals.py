"""What an engine cannot honour is refused before the work, in one line; and the words that ask for one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import enlarger
from enlarger.errors import InputError, Unsupported
from enlarger.nn import freeu
from enlarger.nn.unet import UNet
from enlarger.runtime.engines import openvino_api
from enlarger.runtime.engines.engine import EAGER
from enlarger.runtime.engines.named import EngineOptions, make_engine
from enlarger.runtime.runtime import Runtime
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.model_description import describe_model
from tests.support import tiny
from tests.support.random_weights import randomise
from tests.support.tiny_models import UNET

CPU = torch.device("cpu")
EXTRA = "the engine openvino is not installed; pip install 'enlarger[openvino]'"


def made(name: str, place: Path, **changes: Any) -> Any:
    options = {"device": CPU, "precision": "float32", "offload": "none", "cache": place} | changes
    return make_engine(name, EngineOptions(**options))


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("onnx", {}, "engine is 'onnx', expected torch, compile or openvino"),
        ("torch", {"precision": "int8"}, "precision is int8, which the engine openvino alone computes in; give both, "),
        ("compile", {"precision": "int8"}, "precision is int8, which the engine openvino alone computes in; give both"),
        ("compile", {"offload": "sequential"}, "offload is sequential, which moves layers by hooks that compiled "),
        ("openvino", {"device": torch.device("cuda:0")}, "the engine openvino runs on the CPU, not on cuda:0; give "),
        ("openvino", {"offload": "model"}, "offload is model, but the engine openvino keeps weights of its own; leave"),
        ("openvino", {"offload": "sequential"}, "offload is sequential, but the engine openvino keeps weights of its"),
        ("openvino", {"precision": "float16"}, "precision is float16, which the engine openvino does not compute in "),
    ],
)
def test_what_does_not_go_together(name: str, changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        made(name, tmp_path, **changes)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_without_the_extra_one_line_names_it(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the library, and in a service's list of models."""
    monkeypatch.setattr(openvino_api, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(InputError) as caught:
        enlarger.load(tmp_path / "nothing", device="cpu", engine="openvino")
    assert str(caught.value) == EXTRA
    settings = ModelSettings(name="one", path=str(tiny.sd1_folder()), engine="openvino")
    assert describe_model(settings, CPU).error == EXTRA


def test_what_a_graph_would_leave_out(tmp_path: Path) -> None:
    network, engine = randomise(UNet(UNET)), made("openvino", tmp_path)
    freeu.enable(network, freeu.FreeU(0.9, 0.2, 1.2, 1.4))
    with (
        pytest.raises(InputError, match=r"^FreeU is on, which the engine openvino leaves out"),
        engine.prepare(network),
    ):
        pass
    freeu.disable(network)
    handle = network.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"^found a hook on MidBlock, which the engine"), engine.prepare(network):
        pass
    handle.remove()
    with engine.prepare(network):
        pass


def test_a_runtime_has_an_engine() -> None:
    network = nn.Linear(2, 2)
    assert Runtime().engine is EAGER is made("torch", Path())
    with Runtime().run(network) as call:
        assert call is network


def test_a_network_that_no_engine_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from enlarger.tasks.upscale.pixel_network import load

    with pytest.raises(Unsupported, match=r"^esrgan.pth: engine is compile, but a pixel network runs by torch; leave "):
        load(Any, Runtime(engine=made("compile", Path())), "esrgan.pth")  # refused before it is looked at
