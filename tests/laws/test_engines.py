"""An engine computes what torch does: every kind of network, in any size, and whole runs."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import Stage, UNet, UNetConfig
from enlarger.nn.upscale_net import Backprojected, UpscaleNet, UpscaleNetConfig
from enlarger.runtime.engines.compiled import CompileEngine, repeated_blocks
from enlarger.runtime.engines.engine import EAGER, Engine
from enlarger.runtime.engines.named import EngineOptions, make_engine
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise
from tests.support.tiny import one_thread
from tests.support.tiny_models import AUTOENCODER, K_UNET

CPU = torch.device("cpu")
CONTEXT = 32
STAGES = (Stage(32, 1, 1, 4), Stage(64, 1, 0, 4))
XL_STAGES = (Stage(32, 1, 0, 2), Stage(64, 1, 2, 4))
X4_STAGES = (Stage(32, 1, 0, 2, only_cross_attention=True), Stage(64, 1, 1, 2, only_cross_attention=True))

one_thread = pytest.fixture(autouse=True, scope="module")(one_thread)


def unet(channels: int, stages: tuple[Stage, ...], linear: bool = False, **more: int) -> UNet:
    depth = 2 if linear else 1
    return randomise(UNet(UNetConfig(channels, 4, stages, depth, 4, CONTEXT, linear, groups=8, **more)))


def tokens(batch: int = 1) -> Tensor:
    return normal(batch, 7, CONTEXT, seed=3)


Inputs = tuple[tuple[Tensor, ...], dict[str, Tensor]]
TIME = torch.tensor([7.5])


def networks() -> dict[str, tuple[Callable[[], nn.Module], Inputs]]:
    """A network of every layout, and what it is called with."""
    vector, mask = normal(1, 80, seed=4), torch.tensor([[True] * 5 + [False] * 2])
    autoencoder = AutoencoderKL(AUTOENCODER)
    return {
        "sd1": (lambda: unet(4, STAGES), ((normal(1, 4, 8, 16), TIME), {"tokens": tokens()})),
        "inpainting": (lambda: unet(9, STAGES), ((normal(1, 9, 8, 8), TIME), {"tokens": tokens()})),
        "sdxl": (
            lambda: unet(4, XL_STAGES, True, vector_channels=80, time_id_channels=8),
            ((normal(1, 4, 8, 8), TIME), {"tokens": tokens(), "vector": vector}),
        ),
        "x4": (
            lambda: unet(7, X4_STAGES, True, num_class_embeds=30),
            ((normal(1, 7, 8, 8), TIME), {"tokens": tokens(), "label": torch.tensor([20])}),
        ),
        "x2": (
            lambda: randomise(KUNet(K_UNET)),
            ((normal(1, 8, 8, 16), TIME / 10), {"tokens": tokens(), "vector": normal(1, 160), "mask": mask}),
        ),
        "encoder": (lambda: randomise(autoencoder.encoder), ((normal(1, 3, 16, 24),), {})),
        "decoder": (lambda: randomise(autoencoder.decoder), ((normal(1, 4, 8, 12),), {})),
        "predictor": (lambda: randomise(UpscaleNet(UpscaleNetConfig(4, 2))), ((normal(1, 3, 16, 12),), {})),
        "detailer": (
            lambda: Backprojected(randomise(UpscaleNet(UpscaleNetConfig(4, 2)))),
            ((normal(1, 3, 16, 12),), {}),
        ),
    }


NETWORKS = networks()


def openvino(cache: Path, precision: str = "float32") -> Any:
    return make_engine("openvino", EngineOptions(CPU, precision, "none", cache))


def call(engine: Engine, network: nn.Module, inputs: Inputs) -> Tensor:
    row, named = inputs
    with torch.inference_mode(), engine.prepare(network) as run:
        return run(*row, **named)


def larger(inputs: Inputs) -> Inputs:
    """Two of them, of other sizes."""
    row, named = inputs
    x = torch.cat([row[0], row[0].flip(-1)], -1).repeat(2, 1, 1, 1)
    x[1] = x[1].flip(0)
    return (x, *(each.repeat(2) for each in row[1:])), {
        name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in named.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    """In every size and number that comes, by one graph."""
    make, inputs = NETWORKS[name]
    network, engine = make(), openvino(tmp_path)
    for each in (inputs, larger(inputs)):
        found = call(engine, network, each)
        assert found.dtype == torch.float32
        assert_close(found, call(EAGER, network, each), 1e-4)
    assert len(list((tmp_path / "openvino").iterdir())) == 1


@pytest.fixture(scope="module")
def compile_engine() -> CompileEngine:
    return CompileEngine(CPU)


def test_the_blocks_that_are_compiled() -> None:
    """The innermost that repeat: residual, transformer and resampling blocks, and the layers of an autoencoder."""

    def names(network: nn.Module) -> set[str]:
        return {type(block).__name__ for block in repeated_blocks(network)}

    assert names(NETWORKS["sd1"][0]()) == {"ResnetBlock", "TransformerBlock", "Downsample", "Upsample"}
    assert names(NETWORKS["x2"][0]()) == {"KResnetBlock", "KAttentionBlock"}
    assert names(NETWORKS["decoder"][0]()) == {"ResnetBlock", "PixelAttention", "Upsample"}
    assert names(NETWORKS["predictor"][0]()) == {"ResidualBlock"}


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler here")
def test_compile_computes_what_torch_does(compile_engine: CompileEngine) -> None:
    make, inputs = NETWORKS["predictor"]
    network = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")  # its own, of its own ways
        found = call(compile_engine, network, inputs)
    assert all(block._compiled_call_impl is not None for block in repeated_blocks(network))
    assert_close(found, call(EAGER, make(), inputs), 1e-5)


def test_compile_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a network; its next runs do not try again."""
    make, inputs = NETWORKS["sd1"]
    network, engine, compiled = make(), CompileEngine(CPU), []

    def fail(*inputs: object, **named: object) -> Tensor:
        raise TorchDynamoException("no C++ compiler\nwas found")

    def compile(block: nn.Module, **options: object) -> None:
        compiled.append(block)
        block._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile)
    with pytest.warns(UserWarning, match=r"^torch.compile failed \(no C\+\+ compiler\): computed without it$"):
        found = call(engine, network, inputs)
    assert len(compiled) == len(list(repeated_blocks(network))) > 0
    compiled.clear()
    assert found.equal(call(engine, network, inputs)) and not compiled
    assert found.equal(call(EAGER, make(), inputs))
