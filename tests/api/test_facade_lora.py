"""Adapters and inversions under diffusers' method names give diffusers' networks, and are taken back exactly."""

import inspect
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import enlarger.diffusers
from enlarger.checkpoint.adapters.lora import apply_lora
from enlarger.diffusers import StableDiffusionPipeline
from enlarger.diffusers.loaders.lora import LoraMethods
from enlarger.errors import CheckpointError, InputError, Unsupported
from tests.support import tiny
from tests.support.close import assert_close
from tests.support.random_weights import normal
from tests.support.tiny_models import same_weights

pytest.importorskip("peft", reason="the oracle adds LoRAs with peft")
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

ATOL = 1e-5
IDS = torch.tensor([[49406, 320, 2368, 49407, 49407]])
BOTH = ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.resnets.0.conv1")
TEXT = "encoder.layers.1.self_attn.v_proj"


@pytest.fixture(autouse=True)
def peft_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="peft")
        warnings.filterwarnings("ignore", message=".*(peft_config|unmerge|was active which).*")
        yield


@pytest.fixture(scope="module")
def read() -> tuple[Any, Any]:
    kinds = StableDiffusionPipeline, diffusers.StableDiffusionPipeline
    return tuple(kind.from_pretrained(tiny.sd1_folder()) for kind in kinds)


def again(pipe: Any) -> Any:
    """A pipeline with networks of its own; the tests may change it."""
    parts = {name: deepcopy(p) if isinstance(p, nn.Module) else p for name, p in pipe.components.items()}
    made = type(pipe)(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def ours(read: Any) -> Any:
    return again(read[0])


@pytest.fixture
def theirs(read: Any) -> Any:
    """Its tokenizer is changed by an inversion, but by one test only."""
    return again(read[1])


def lora(seed: int, text: bool = True) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {f"unet.{BOTH[0]}": (32, 32), f"unet.{BOTH[1]}": (64, 64, 3, 3)}
    shapes |= {f"text_encoder.{TEXT}": (32, 32)} if text else {}
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        made[f"{name}.lora_A.weight"] = normal(2, *shape[1:], seed=seed)
        made[f"{name}.lora_B.weight"] = normal(shape[0], 2, *(1 for _ in shape[2:]), seed=seed + 1) / 4
    return made


def networks(pipe: Any) -> tuple[Tensor, Tensor]:
    inputs = normal(1, 4, 8, 8), torch.tensor([400.0]), normal(1, 7, 32, seed=2)
    with torch.no_grad():
        return pipe.unet(*inputs).sample, pipe.text_encoder(IDS).last_hidden_state


def assert_equal(ours: Any, theirs: Any, atol: float = ATOL) -> None:
    for found, expected in zip(networks(ours), networks(theirs), strict=True):
        assert_close(found, expected, atol)


STEPS: dict[str, list[tuple[str, tuple[Any, ...], dict[str, Any]]]] = {
    "one": [],
    "the later one is active": [("load_lora_weights", (lora(9),), {"adapter_name": "b"})],
    "a part without the later one keeps the first": [("load_lora_weights", (lora(9, False),), {"adapter_name": "b"})],
    "weights": [
        ("load_lora_weights", (lora(9),), {"adapter_name": "b"}),
        ("set_adapters", (["a", "b"], [0.5, -0.3]), {}),
    ],
    "weights by part": [("set_adapters", ("a", {"unet": 0.4, "text_encoder": 0.0}), {})],
    "weights by way": [("set_adapters", ("a", {"unet": {"down": 0.5, "up": 0.2, "mid": 0.0}}), {})],
    "weights by block": [("set_adapters", (["a"], [{"unet": {"down": {"block_0": [0.3]}, "mid": 0.7}}]), {})],
    "weights by block, fused": [("set_adapters", ("a", {"unet": {"down": 0.4}}), {}), ("fuse_lora", (), {})],
    "weights of one part": [("set_adapters", (["a"], [{"unet": 0.4}]), {})],
    "disabled": [("disable_lora", (), {})],
    "enabled": [("disable_lora", (), {}), ("enable_lora", (), {})],
    "deleted": [("load_lora_weights", (lora(9),), {}), ("set_adapters", ("a",), {}), ("delete_adapters", ("a",), {})],
    "fused": [("set_adapters", ("a", 0.6), {}), ("fuse_lora", (), {"lora_scale": 0.5})],
    "fused, disabled": [("fuse_lora", (), {}), ("disable_lora", (), {})],
    "fused, unloaded": [("fuse_lora", (), {"lora_scale": 0.5}), ("unload_lora_weights", (), {})],
    "fused, loaded": [
        ("fuse_lora", (), {}), ("unload_lora_weights", (), {}), ("load_lora_weights", (lora(9),), {}),
    ],
    "part fused": [("fuse_lora", (["unet"],), {"safe_fusing": True})],
    "unfused": [("fuse_lora", (), {}), ("unfuse_lora", (), {})],
    "named": [
        ("load_lora_weights", (lora(9),), {"adapter_name": "b"}),
        ("set_adapters", (["a", "b"],), {}),
        ("fuse_lora", (), {"adapter_names": ["a", "b"]}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
def test_methods_do_what_diffusers_does(ours: Any, theirs: Any, steps: str) -> None:
    for pipe in (ours, theirs):
        pipe.load_lora_weights(lora(1), adapter_name="a")
        for method, args, kwargs in STEPS[steps]:
            if method == "delete_adapters" and pipe is ours:
                with pytest.warns(UserWarning, match="the active adapters were deleted; now default_1 is active"):
                    pipe.delete_adapters(*args)
            else:
                getattr(pipe, method)(*args, **kwargs)
    assert_equal(ours, theirs)
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    if "keeps" not in steps:  # theirs lists the active ones of the last part alone
        assert ours.get_active_adapters() == theirs.get_active_adapters()


def test_methods_have_diffusers_arguments() -> None:
    theirs = diffusers.StableDiffusionPipeline
    for name in dir(LoraMethods):
        if not name.startswith("_") and inspect.isfunction(getattr(LoraMethods, name)):
            wanted = [n for n in inspect.signature(getattr(theirs, name)).parameters if n != "kwargs"]
            found = [n for n in inspect.signature(getattr(LoraMethods, name)).parameters if n != "kwargs"]
            assert found == wanted, name


def test_another_adapter_takes_the_place_of_one(ours: Any, theirs: Any) -> None:
    for pipe in (ours, theirs):
        pipe.load_lora_weights(lora(1, False), adapter_name="a")
        pipe.set_adapters("a", 0.6)
        pipe.load_lora_weights(lora(9, False), adapter_name="a", hotswap=True)
    assert_equal(ours, theirs)
    assert ours.get_list_adapters() == {"unet": ["a"]}


def test_saved_layers_are_read_by_both(ours: Any, theirs: Any, tmp_path: Path) -> None:
    layers = {part: {} for part in ("unet", "text_encoder")}
    for name, tensor in lora(1).items():
        part, _, key = name.partition(".")
        layers[part][key] = tensor
    StableDiffusionPipeline.save_lora_weights(tmp_path, layers["unet"], layers["text_encoder"])
    for pipe in (ours, theirs):
        pipe.load_lora_weights(tmp_path)
    assert_equal(ours, theirs)
    with pytest.raises(ValueError, match="found no layers to save; give unet_lora_layers"):
        StableDiffusionPipeline.save_lora_weights(tmp_path)


def test_unloading_is_exact(ours: Any) -> None:
    unet, encoder, before = ours.unet, ours.text_encoder, networks(ours)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    ours.load_lora_weights(lora(1))
    assert (networks(ours)[0] - before[0]).abs().max() > 0.05
    assert ours.unet.conv_in.weight is unet.conv_in.weight and ours.unet is not unet
    ours.fuse_lora()
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert ours.unet is unet and ours.text_encoder is encoder
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    assert ours.get_list_adapters() == {} and ours.get_active_adapters() == [] and ours.num_fused_loras == 0


def test_moving_and_precision_reach_what_is_taken_back(ours: Any) -> None:
    other = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder()).to(torch.bfloat16)
    ours.load_lora_weights(lora(1))
    ours.to(torch.bfloat16)
    ours.unload_lora_weights()
    assert same_weights(ours.unet, other.unet) and same_weights(ours.text_encoder, other.text_encoder)
    ours.load_lora_weights(lora(1))
    assert {tensor.dtype for tensor in ours.unet.parameters()} == {torch.bfloat16}


def test_a_replaced_part_is_the_new_base(ours: Any) -> None:
    ours.load_lora_weights(lora(1))
    replaced = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder()).unet
    ours.unet = replaced
    ours.set_adapters("default_0", 0.5)
    assert ours.unet is not replaced
    ours.unload_lora_weights()
    assert ours.unet is replaced


def test_what_a_file_stated_stays_known() -> None:
    ours = StableDiffusionPipeline.from_pretrained(tiny.sd1_folder())
    ours.set_progress_bar_config(disable=True)
    ours.load_lora_weights(lora(1))
    images = ours("a cat", num_inference_steps=1, output_type="pt").images
    assert images.shape[-2:] == (64, 64)


def test_scale_of_one_call(ours: Any, theirs: Any) -> None:
    assert ours._with_lora_scale(0.5) == {}, "a scale of nothing is nothing, as in diffusers"
    ours.load_lora_weights(lora(1))
    theirs.load_lora_weights(lora(1))
    ours.set_adapters("default_0", 0.8)
    theirs.set_adapters("default_0", 0.8 * 0.5)
    shown = networks(ours)
    parts = ours._with_lora_scale(0.5)
    assert set(parts) == {"unet", "text_encoder"} and ours._with_lora_scale(1.0) == {}
    x, time, tokens = normal(1, 4, 8, 8), torch.tensor([400.0]), normal(1, 7, 32, seed=2)
    found, (expected, _) = parts["unet"](x, time, tokens=tokens), networks(theirs)
    assert_close(found, expected, ATOL)
    assert_close(networks(ours)[0], shown[0], 0)


def test_files_and_folders(ours: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    save_file(lora(1), tmp_path / "sub" / "a.safetensors")
    ours.load_lora_weights(tmp_path, subfolder="sub", weight_name="a.safetensors")
    ours.load_lora_weights(str(tmp_path), subfolder="sub", local_files_only=True, use_safetensors=True)
    save_file(lora(2), tmp_path / "sub" / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"found a.safetensors, b.safetensors, expected pytorch_lora_weights"):
        ours.load_lora_weights(tmp_path / "sub")
    save_file(lora(3), tmp_path / "sub" / "pytorch_lora_weights.safetensors")
    ours.load_lora_weights(tmp_path / "sub", adapter_name="usual")
    assert ours.get_list_adapters() == {part: ["default_0", "default_1", "usual"] for part in ("unet", "text_encoder")}
    with pytest.raises(CheckpointError, match="no such file, and nothing is downloaded here; fetch it first"):
        ours.load_lora_weights("someone/some-lora")
    torch.save(lora(1), tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="not opened, since it is a pickle"):
        ours.load_lora_weights(tmp_path / "a.bin")
    ours.load_lora_weights(tmp_path, weight_name="a.bin", use_safetensors=False, adapter_name="pickle")


WRONG: list[tuple[str, tuple[Any, ...], str]] = [
    ("load_lora_weights", (lora(1), "a"), "an adapter is already called 'a'; give another adapter_name"),
    ("set_adapters", ("b",), "no adapter is called b; loaded are a"),
    ("set_adapters", (["a"], [1.0, 2.0]), "found 1 adapter names and 2 weights, expected as many"),
    ("set_adapters", ("a", {"vae": 1.0}), "found weights for vae, expected some of unet, text_encoder"),
    ("fuse_lora", (["vae"],), r"components is \['vae'\], expected some of unet, text_encoder, text_encoder_2"),
    ("unfuse_lora", ([],), r"components is \[\], expected some of unet"),
    ("unload_textual_inversion", ("<x>",), "found no tokens <x> to take away; added are none"),
    ("load_textual_inversion", (["a", "b"], ["x"]), "found 2 files and 1 tokens, expected as many"),
]


@pytest.mark.parametrize(("method", "args", "said"), WRONG)
def test_wrong_arguments(ours: Any, method: str, args: tuple[Any, ...], said: str) -> None:
    ours.load_lora_weights(lora(1), adapter_name="a")
    with pytest.raises(ValueError, match=said):
        getattr(ours, method)(*args)


def test_what_cannot_be_done(ours: Any) -> None:
    with pytest.raises(ValueError, match="no adapter is called 'a' to be swapped; loaded are"):
        ours.load_lora_weights(lora(1), "a", hotswap=True)
    with pytest.warns(UserWarning, match="1 names fit no layer of the model: unet.nowhere.*Nothing is loaded"):
        ours.load_lora_weights({"unet.nowhere.lora_A.weight": normal(2, 3), "unet.nowhere.lora_B.weight": normal(3, 2)})
    with pytest.raises(Unsupported, match="found network_alphas=3, which is not here; give a local file"):
        ours.load_lora_weights(lora(1), network_alphas=3)
    ours.load_lora_weights(lora(1), adapter_name="a")
    with pytest.raises(ValueError, match="found weights for left of the unet, expected some of down, mid, up"):
        ours.set_adapters("a", {"unet": {"left": 0.5}})
    with pytest.raises(ValueError, match=r"found weights for block_7 of up, expected some of block_\d"):
        ours.set_adapters("a", {"unet": {"up": {"block_7": 0.5}}})
    with pytest.raises(ValueError, match="found weights by block for text_encoder, expected a number"):
        ours.set_adapters("a", {"text_encoder": {"down": 0.5}})
    ours.fuse_lora()
    with pytest.raises(ValueError, match=r"a is fused; unfuse_lora\(\) first"):
        ours.delete_adapters("a")


def test_what_has_nothing_to_do_does_nothing(ours: Any, theirs: Any, caplog: Any) -> None:
    for pipe in (ours, theirs):
        pipe.fuse_lora()
        pipe.load_lora_weights(lora(1), adapter_name="a", cache_dir="/nowhere", low_cpu_mem_usage=False)
        pipe.delete_adapters("b")
        pipe.unload_textual_inversion()
    assert "cache_dir has no effect: nothing is downloaded" in caplog.text
    ours.fuse_lora()
    fused = networks(ours)
    ours.fuse_lora()
    assert_close(networks(ours)[0], fused[0], 0)
    assert "a is fused already; unfuse_lora() first" in caplog.text


def test_adapters_are_handed_on(ours: Any, theirs: Any) -> None:
    plain = networks(ours)
    made: list[Any] = []
    for pipe, module in ((ours, enlarger.diffusers), (theirs, diffusers)):
        pipe.load_lora_weights(lora(1), adapter_name="a")
        made.append(module.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
        assert made[-1].get_active_adapters() == ["a"]
        made[-1].set_adapters("a", 0.5)
    assert_close(networks(made[0])[0], networks(made[1])[0], atol=ATOL)
    made[0].unload_lora_weights()
    assert torch.equal(networks(made[0])[0], plain[0])
    own = deepcopy(made[0].unet)
    other = enlarger.diffusers.StableDiffusionImg2ImgPipeline.from_pipe(ours, unet=own)
    assert other.unet is own and other.get_active_adapters() == []


def test_damaged_adapters_are_not_fused(ours: Any) -> None:
    damaged = lora(1)
    damaged[f"unet.{BOTH[0]}.lora_A.weight"][0, 0] = torch.nan
    ours.load_lora_weights(damaged)
    with pytest.raises(InputError, match=rf"unet.{BOTH[0]}.weight would not be finite with the adapters"):
        ours.fuse_lora(safe_fusing=True)


def test_inversions_beside_adapters(ours: Any, theirs: Any) -> None:
    before = ours.tokenizer, ours.text_encoder
    for pipe in (ours, theirs):
        pipe.load_textual_inversion({"<cat-toy>": normal(2, 32, seed=8)})
        pipe.load_lora_weights(lora(1))
        pipe.load_textual_inversion({"<other>": normal(1, 32, seed=9)}, token="<moss>")

    def run(pipe: Any) -> Any:
        prompt = "a <cat-toy> on <moss>"
        call: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
        return pipe(prompt, generator=torch.manual_seed(0), **call).images

    assert_close(run(ours), run(theirs), 1e-4)
    ours.unload_textual_inversion("<moss>")
    assert ours.tokenizer is not before[0]
    ours.unload_textual_inversion()
    assert ours.tokenizer is before[0]
    updates = ours._adapters.loras["default_0"].components["text_encoder"]
    assert same_weights(ours.text_encoder, apply_lora(before[1], updates))
    ours.unload_lora_weights()
    assert ours.text_encoder is before[1]


def test_inversions_for_a_chosen_encoder(ours: Any) -> None:
    ours.load_textual_inversion({"<a>": normal(1, 32)}, text_encoder=ours.text_encoder, tokenizer=ours.tokenizer)
    with pytest.raises(ValueError, match="are no pair of this pipeline; give its own, or leave them out"):
        ours.load_textual_inversion({"<b>": normal(1, 32)}, text_encoder=object())
    ours.unload_textual_inversion(text_encoder=ours.text_encoder)
    with pytest.raises(InputError, match="made for this model"):
        ours.load_textual_inversion({"<c>": normal(1, 768)})
