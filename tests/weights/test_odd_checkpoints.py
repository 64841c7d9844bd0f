"""Checkpoints as people have them: tensors beside the networks, old names, marks, quantised weights, odd folders."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from enlarger.checkpoint.adapters.textual_inversion import read_textual_inversion
from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import original_state_dict
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.diffusion.schedule import scaled_linear
from enlarger.errors import CheckpointError
from tests.support import tiny
from tests.support.single import tiny_single
from tests.support.tiny_models import same_weights

KNOWN_CONSTANTS = (  # of the original code and of transformers, which most files have
    "cond_stage_model.transformer.text_projection.weight", "model_ema.num_updates", "cond_stage_model.logit_scale"
)  # fmt: skip
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.fixture(scope="module")
def bundle() -> PipelineComponents:
    return tiny_single("sd1")


@pytest.fixture(scope="module")
def original(bundle: PipelineComponents) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in original_state_dict(bundle).items()}


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "extra",
    [
        "cond_stage_model.transformer.text_projection.weight", "embedding_manager.string_to_param_dict.*",
        "first_stage_model.loss.logvar", "first_stage_model.model_ema.decay", "model_ema.num_updates", "scaled_fp8",
        "model.diffusion_model.scaled_fp8", "merge_recipe", "first_stage_model.loss.discriminator.main.0.weight",
        "optimizer.state.0", "cond_stage_model.logit_scale", "metadata",
    ],
)  # fmt: skip
def test_harmless_tensors_are_named(
    bundle: PipelineComponents, original: dict[str, Tensor], tmp_path: Path, extra: str
) -> None:
    path = written(tmp_path / "a.safetensors", original | {extra: torch.zeros(3)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_single_file(path)
    assert same_weights(found.components["unet"], bundle.components["unet"])
    expected = [] if extra in KNOWN_CONSTANTS else [f"{path}: left out 1 tensor that no network needs: "]
    assert [str(each.message).removesuffix(repr(extra)).removesuffix(extra) for each in caught] == expected


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.0.0.bias", "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)  # fmt: skip
def test_a_missing_weight_stays_an_error(original: dict[str, Tensor], tmp_path: Path, key: str) -> None:
    path = written(tmp_path / "a.safetensors", {name: each for name, each in original.items() if name != key})
    with pytest.raises(CheckpointError, match=r"missing|measuring"):
        read_single_file(path)


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.99.0.weight", "first_stage_model.decoder.up.9.block.0.conv1.weight",
        "cond_stage_model.transformer.text_model.adapter.weight",
    ],
)  # fmt: skip
def test_a_weight_among_a_networks_own_stays_an_error(original: dict[str, Tensor], tmp_path: Path, key: str) -> None:
    path = written(tmp_path / "a.safetensors", original | {key: torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"1 weights belong to none of its networks|unexpected"):
        read_single_file(path)


@pytest.mark.parametrize(
    "names",
    [
        {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
        {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
        {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"},
    ],
)
def test_attention_names_of_the_autoencoder(
    bundle: PipelineComponents, original: dict[str, Tensor], tmp_path: Path, names: dict[str, str]
) -> None:
    def renamed(name: str) -> str:
        for old, new in names.items():
            name = name.replace(f".mid.attn_1.{old}.", f".mid.attn_1.{new}.")
        return name

    found = read_single_file(written(tmp_path / "a.safetensors", {renamed(n): t for n, t in original.items()}))
    assert same_weights(found.components["vae"], bundle.components["vae"])
    assert set(original_state_dict(found)) == set(original)  # written as the original names them


@pytest.mark.parametrize(
    ("family", "marks", "expected"),
    [
        ("sdxl", ("v_pred", "ztsnr"), ("v_prediction", True)), ("sdxl", ("v_pred",), ("v_prediction", None)),
        ("sdxl", ("ztsnr",), ("epsilon", True)), ("sd1", ("v_pred", "ztsnr"), ("v_prediction", True)),
    ],
)  # fmt: skip
def test_marks_are_obeyed(
    tmp_path: Path, family: str, marks: tuple[str, ...], expected: tuple[str, bool | None]
) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in original_state_dict(tiny_single(family)).items()}
    path = written(tmp_path / "a.safetensors", tensors | {mark: torch.tensor([]) for mark in marks})
    scheduler = read_single_file(path).components["scheduler"]
    assert (scheduler.get("prediction_type", "epsilon"), scheduler.get("rescale_betas_zero_snr")) == expected
    ends_in_noise = float(sampler_from_config(scheduler).schedule.sigmas[-1]) > 1000
    assert ends_in_noise == bool(expected[1])
    assert scheduler["_class_name"] == ("EulerDiscreteScheduler" if family == "sdxl" else "DDIMScheduler")


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def with_whole_numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(torch.int8) if n.startswith("model.") and t.dim() == 4 else t for n, t in tensors.items()}


QUANTISED: dict[str, Change] = {
    "int8": with_whole_numbers,
    "bitsandbytes": lambda tensors: tensors | {f"{UNET_KEY}.absmax": torch.ones(2)},
    "scaled float8": lambda tensors: tensors | {UNET_KEY.replace("weight", "scale_weight"): torch.tensor(2.0)},
    "quanto": lambda tensors: tensors | {f"{UNET_KEY}._data": torch.ones(2, dtype=torch.int8)},
}


@pytest.mark.parametrize("label", QUANTISED)
def test_quantised_weights_are_one_line(original: dict[str, Tensor], tmp_path: Path, label: str) -> None:
    path = written(tmp_path / "a.safetensors", QUANTISED[label](original))
    with pytest.raises(CheckpointError, match=r"expected floating-point numbers\. The file was quantised for another"):
        read_single_file(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"GGUF\3\0\0\0" + bytes(100), "a file of GGUF"), (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "a file of HDF5"),
    ],
)  # fmt: skip
def test_other_formats_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"a\.safetensors: found {kind}.*, expected safetensors; fetch the model"
    ):
        open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("stated", ["EulerAncestralDiscreteScheduler", "DDIMScheduler", None])
def test_a_scheduler_named_twice(bundle: PipelineComponents, tmp_path: Path, stated: str | None) -> None:
    folder = save_folder(bundle, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
    file = folder / "scheduler" / "scheduler_config.json"
    config = {name: value for name, value in json.loads(file.read_text()).items() if name != "_class_name"}
    file.write_text(json.dumps(config | ({} if stated is None else {"_class_name": stated})))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_folder(folder).components["scheduler"]["_class_name"] == index
    notes = [str(each.message) for each in caught]
    assert [f"names {stated}, model_index.json {index}; the latter is taken" in note for note in notes] == (
        [] if stated is None else [True]
    )


@pytest.mark.parametrize("key", ["*", "<token>", "265"])
def test_an_inversion_under_another_key(tmp_path: Path, key: str) -> None:
    torch.save({"string_to_param": {key: torch.ones(2, 32)}, "name": "word", "step": 5}, tmp_path / "a.pt")
    found = read_textual_inversion(tmp_path / "a.pt", allow_pickle=True)
    assert found.token == "word" and found.vectors["32"].equal(torch.ones(2, 32))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("grid", ["fractional", "whole", "one_more"])
def test_every_number_of_steps_is_a_schedule(spacing, grid) -> None:
    schedule = scaled_linear(0.00085, 0.012)
    for steps in (1, 2, 3, 7, 333, 499, 500, 501, 998, 999, 1000):
        for offset in (0, 1):
            times = schedule.timesteps(steps, spacing, offset, grid)
            assert len(times) == steps and bool((times[1:] < times[:-1]).all())
            assert 0 <= float(times[-1]) <= float(times[0]) <= 999
