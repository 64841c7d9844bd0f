"""Model folders: written, read back, read by and from diffusers, variants, shards, old names, damage, memory."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder import load as folder_room
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.load_module import load_module, to_current_key
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from tests.support.close import assert_close, max_difference
from tests.support.random_weights import normal, randomise
from tests.support.tiny_models import AUTOENCODER, EULER, TEXT, UNET, same_weights, sdxl_bundle, x2_bundle, x2_folder

NETWORKS = ("text_encoder", "unet", "vae")


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rewrite(path: Path, change: Any) -> None:
    """Load a safetensors file, let `change` edit its tensors, and write it again."""
    tensors = load_file(path)
    changed = change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in (changed or tensors).items()}, path)


def test_written_folder_reads_back_equal(tmp_path: Path) -> None:
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "x2")
    before = digest(path)
    found = read_folder(path)
    assert list(found.components) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    for name in NETWORKS:
        module = found.components[name]
        assert same_weights(module, bundle.components[name]) and module.config == bundle.components[name].config
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert found.components["scheduler"] == EULER and found.skipped == ()
    assert found.index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert digest(path) == before, "loading changed a file"
    assert digest(save_folder(found, tmp_path / "again")) == before


def test_all_kinds_of_networks_round_trip(tmp_path: Path) -> None:
    bundle = sdxl_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "xl")
    found = read_folder(path)
    for name in (*NETWORKS, "text_encoder_2"):
        assert same_weights(found.components[name], bundle.components[name])
        assert found.components[name].config == bundle.components[name].config
    assert found.index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]


def test_our_own_networks_round_trip(tmp_path: Path) -> None:
    parts = {
        "predictor": UpscaleNet(UpscaleNetConfig(channels=8, blocks=1)),
        "restorer": UpscaleNet(UpscaleNetConfig(channels=8, blocks=1, extra_channels=1)),
    }
    path = save_folder(PipelineComponents(tmp_path, {"_class_name": "Enlarger"}, parts), tmp_path / "ours")
    found = read_folder(path)
    for name, module in parts.items():
        assert same_weights(found.components[name], module) and found.components[name].config == module.config
    config = json.loads((path / "predictor" / "config.json").read_text())
    (path / "predictor" / "config.json").write_text(json.dumps(config | {"depth": 3}))
    with pytest.raises(Unsupported, match=r"predictor/config.json: UpscaleNetConfig: unknown settings depth"):
        read_folder(path)


def test_the_table_takes_new_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(UpscaleNet):
        pass

    monkeypatch.setitem(folder_room.COMPONENT_CLASSES, "Mine", folder_room.COMPONENT_CLASSES["UpscaleNet"])
    module = Mine(UpscaleNetConfig(channels=8, blocks=1))
    path = save_folder(PipelineComponents(tmp_path, {}, {"mine": module}), tmp_path / "model")
    assert same_weights(read_folder(path).components["mine"], module)
    with pytest.raises(InputError, match="Linear is not a network that can be saved; expected one of UNet2DCond"):
        save_folder(PipelineComponents(tmp_path, {}, {"odd": torch.nn.Linear(1, 1)}), tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_convert_on_reading_and_writing(tmp_path: Path, dtype: torch.dtype) -> None:
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "x2")
    expected = {name: tensor.to(dtype) for name, tensor in bundle.components["unet"].state_dict().items()}
    read = read_folder(path, dtype=dtype).components["unet"].state_dict()
    assert all(tensor.dtype == dtype and tensor.equal(expected[name]) for name, tensor in read.items())
    half = read_folder(save_folder(bundle, tmp_path / "half", dtype=dtype)).components["unet"].state_dict()
    assert all(tensor.dtype == dtype and tensor.equal(expected[name]) for name, tensor in half.items())


def test_variant_chooses_files(tmp_path: Path) -> None:
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "x2", dtype=torch.float16, variant="fp16")
    assert (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (path / "text_encoder" / "model.fp16.safetensors").is_file()
    assert read_folder(path, variant="fp16").components["vae"].decoder.conv_in.weight.dtype == torch.float16
    with pytest.raises(CheckpointError, match=r"no weights, but .*model.fp16.safetensors; choose the variant"):
        read_folder(path)
    plain = save_folder(bundle, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"no weights of variant 'fp16', but diffusion_pytorch_model.safetensors"):
        read_folder(plain, variant="fp16", only=["vae"])
    (path / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (plain / "vae" / "diffusion_pytorch_model.safetensors").rename(path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.warns(UserWarning, match="vae has no variant 'fp16'; read plain instead"):
        assert read_folder(path, variant="fp16").components["vae"].decoder.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_read_back_equal(tmp_path: Path, variant: str | None) -> None:
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "x2", max_shard_bytes=100_000, variant=variant)
    assert len(list((path / "unet").glob("*-of-*.safetensors"))) > 2
    found = read_folder(path, variant=variant)
    assert all(same_weights(found.components[name], bundle.components[name]) for name in NETWORKS)


def test_old_autoencoder_names(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    expected = read_folder(path).components["vae"]
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in tensors.items()}

    rewrite(path / "vae" / "diffusion_pytorch_model.safetensors", rename)
    assert (
        "encoder.mid_block.attentions.0.query.weight"
        in open_checkpoint(path / "vae" / "diffusion_pytorch_model.safetensors").keys()
    )
    assert same_weights(read_folder(path).components["vae"], expected)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("positions", [False, True])
def test_text_encoder_names(tmp_path: Path, prefix: str, positions: bool) -> None:
    path = x2_folder(tmp_path)
    expected = read_folder(path).components["text_encoder"]
    file = path / "text_encoder" / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in expected.state_dict().items()}
    if positions:
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file)
    assert same_weights(read_folder(path).components["text_encoder"], expected)
    save_file(
        tensors | {"final_layer_norm.bias": torch.zeros(32), "text_model.final_layer_norm.bias": torch.ones(32)}, file
    )
    with pytest.raises(CheckpointError, match=r"are both final_layer_norm.bias; expected one of them"):
        read_folder(path)


def test_names_of_the_other_networks_stay() -> None:
    for name in (
        "down_blocks.0.attentions.0.proj_in.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight",
    ):
        assert to_current_key(name) == name
    assert (
        to_current_key("decoder.mid_block.attentions.0.proj_attn.bias")
        == "decoder.mid_block.attentions.0.to_out.0.bias"
    )


def test_missing_extra_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["conv_in.bias"]
        tensors["conv_middle.bias"] = torch.zeros(1)
        tensors["conv_out.bias"] = torch.zeros(4)

    rewrite(file, change)
    with pytest.raises(CheckpointError) as error:
        read_folder(path)
    assert str(error.value) == (
        f"{file}: 1 weights missing: conv_in.bias; 1 weights unexpected: conv_middle.bias; 1 weights misshapen: "
        "conv_out.bias (found (4,), expected (5,)). The file looks like the UNet of the x2 latent upscaler, its config "
        "like the UNet of the x2 latent upscaler; it is incomplete or changed."
    )


def test_the_wrong_model_is_recognised(tmp_path: Path) -> None:
    bundle = sdxl_bundle(tmp_path)
    path = x2_folder(tmp_path / "a")
    other = save_folder(bundle, tmp_path / "xl")
    name = "unet/diffusion_pytorch_model.safetensors"
    (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CheckpointError) as error:
        read_folder(path)
    message = str(error.value)
    assert " more; " in message  # ten are named
    assert "looks like a UNet with context width 64, 4 input channels" in message
    assert "its config like the UNet of the x2 latent upscaler; bring config and weights" in message
    (path / name).write_bytes((path / "vae/diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"looks like an AutoencoderKL with 2 levels"):
        read_folder(path)


def test_pickles_are_refused_with_advice(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(
        CheckpointError, match=r"found only diffusion_pytorch_model.bin, pickles.*allow_pickle=True.*enlarger convert"
    ):
        read_folder(path)


def test_left_out_and_unused_parts(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    index = json.loads((path / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": [None, None]}
    index |= {"requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "safety_checker").mkdir()
    (path / "safety_checker" / "config.json").write_text("{}")
    found = read_folder(path)
    assert found.skipped == ("safety_checker",) and "feature_extractor" not in found.components
    again = save_folder(found, tmp_path / "again")
    assert (again / "safety_checker" / "config.json").is_file()
    assert json.loads((again / "model_index.json").read_text()) == json.loads(json.dumps(index, sort_keys=True))


def test_only_reads_the_named_parts(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    assert list(read_folder(path, only=["vae", "scheduler"]).components) == ["scheduler", "vae"]
    with pytest.raises(
        InputError, match=r"no component is called unnet; there are scheduler, text_encoder, tokenizer, unet"
    ):
        read_folder(path, only=["unnet"])


def test_damage_names_the_file(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    cases = {
        "vae/diffusion_pytorch_model.safetensors": lambda data: data[:-5],
        "unet/diffusion_pytorch_model.safetensors": lambda data: b"",
        "text_encoder/model.safetensors": lambda data: data[:8] + b"#" + data[9:],
        "unet/config.json": lambda data: data[:20],
        "scheduler/scheduler_config.json": lambda data: b"[1]",
        "model_index.json": lambda data: b"\xff\xfe",
        "vae/config.json": None,
    }
    for name, damage in cases.items():
        data = (path / name).read_bytes()
        (path / name).unlink() if damage is None else (path / name).write_bytes(damage(data))
        with pytest.raises(CheckpointError) as error:
            read_folder(path)
        assert str(path / name) in str(error.value), name
        (path / name).write_bytes(data)
    read_folder(path)


def test_absent_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"some/model: no such folder. Nothing is downloaded"):
        read_folder("some/model")
    path = x2_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model_index.json.*It has a config.json: give the folder above it"):
        read_folder(path / "unet")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"../unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(CheckpointError, match=r"component '../unet' is not the name of a folder inside the model"):
        read_folder(path)
    (path / "model_index.json").write_text(json.dumps(index | {"unet_2": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(CheckpointError, match=r"x2/unet_2: this folder is missing; model_index.json lists it"):
        read_folder(path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "models" / "x2")
    before = digest(path)
    with pytest.raises(InputError, match=r"x2: already exists; choose another place or allow overwriting"):
        save_folder(bundle, path)
    with torch.device("meta"):
        empty = ClipText(TEXT)
    with pytest.raises(InputError, match="device meta"):
        save_folder(x2_bundle(tmp_path / "b", text_encoder=empty), path, overwrite=True)
    assert digest(path) == before and [p.name for p in path.parent.iterdir()] == ["x2"]
    save_folder(bundle, path, dtype=torch.float16, overwrite=True)
    assert digest(path) != before and [p.name for p in path.parent.iterdir()] == ["x2"]


def test_copied_weights_outlive_their_file(tmp_path: Path) -> None:
    path = x2_folder(tmp_path)
    module = read_folder(path, mmap=False).components["unet"]
    copy = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert all(tensor.equal(copy[name]) for name, tensor in module.state_dict().items())
    module.conv_in.weight.add_(1)  # not memory of a file opened for reading


# VmHWM, not ru_maxrss: the latter starts at what the parent process held when it forked.
MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_checkpoint
weights = open_checkpoint(Path(sys.argv[1]))
dtype = getattr(torch, sys.argv[2])
def make():
    return nn.ModuleDict({"a": nn.Linear(6250, 4000, bias=False), "b": nn.Linear(6250, 2000, bias=False)})
def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
load_module(lambda: nn.Linear(2, 3), open_checkpoint(Path(sys.argv[3])), dtype=dtype)
before = peak()
module = load_module(make, weights, dtype=dtype)
print((peak() - before) * 1024 / sum(p.numel() * p.itemsize for p in module.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_are_in_memory_once(tmp_path: Path, dtype: str) -> None:
    """150 MB in two tensors; the peak grows by the loaded weights and little else."""
    file, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({"a.weight": torch.rand(4000, 6250), "b.weight": torch.rand(2000, 6250)}, file)
    save_file({"weight": torch.rand(3, 2), "bias": torch.rand(3)}, small)
    command = [sys.executable, "-c", MEASURE, str(file), dtype, str(small)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert 0.9 < float(found.stdout) <= 1.1


def test_diffusers_reads_what_we_write(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    bundle = x2_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "x2", max_shard_bytes=100_000)
    pipe = diffusers.StableDiffusionLatentUpscalePipeline.from_pretrained(path)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler" and pipe.tokenizer("the a").input_ids[1] == 53
    ids = bundle.components["tokenizer"](["the a"]).ids
    theirs = pipe.text_encoder(ids, output_hidden_states=True)
    ours = bundle.components["text_encoder"](ids)
    assert_close(ours.last_hidden_state, theirs.last_hidden_state, 1e-5)
    assert_close(ours.pooler_output, theirs.pooler_output, 1e-5)
    x, tokens, vector = normal(1, 8, 8, 8), normal(1, 77, 32), normal(1, 160)
    expected = pipe.unet(x, torch.tensor([0.3]), tokens, timestep_cond=vector).sample
    found = bundle.components["unet"](x, torch.tensor([0.3]), tokens=tokens, vector=vector)
    assert_close(found, expected, 1e-5)
    latents = normal(1, 4, 4, 4)
    assert max_difference(bundle.components["vae"].decode(latents), pipe.vae.decode(latents / 0.18215).sample) <= 1e-5


def test_diffusers_reads_variants_and_second_encoders(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    bundle = sdxl_bundle(tmp_path)
    path = save_folder(bundle, tmp_path / "xl", max_shard_bytes=100_000, variant="fp16")
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(path, variant="fp16")
    ids = bundle.components["tokenizer_2"](["the a"]).ids
    expected = pipe.text_encoder_2(ids).text_embeds
    assert_close(bundle.components["text_encoder_2"](ids).text_embeds, expected, 1e-5)
    x, tokens, pooled, sizes = normal(1, 4, 8, 8), normal(1, 77, 64), normal(1, 32), torch.zeros(1, 6)
    expected = pipe.unet(x, 3, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    vector = torch.cat((pooled, torch.cat((torch.ones(6, 4), torch.zeros(6, 4)), 1).reshape(1, -1)), 1)
    assert_close(bundle.components["unet"](x, torch.tensor([3.0]), tokens=tokens, vector=vector), expected, 1e-5)


@pytest.mark.parametrize("shards", ["10GB", "100KB"])
def test_we_read_what_diffusers_writes(tmp_path: Path, shards: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    pipe = diffusers.StableDiffusionLatentUpscalePipeline.from_pretrained(x2_folder(tmp_path))
    for variant in (None, "fp16"):
        pipe.save_pretrained(tmp_path / f"theirs{variant}", max_shard_size=shards, variant=variant)
        found = read_folder(tmp_path / f"theirs{variant}", variant=variant)
        for name in NETWORKS:
            expected = {to_current_key(n): t for n, t in getattr(pipe, name).state_dict().items()}
            state = found.components[name].state_dict()
            assert all(state[n].equal(t) for n, t in expected.items() if n in state) and state.keys() <= expected.keys()


def test_a_build_without_a_folder(tmp_path: Path) -> None:
    module = randomise(UNet(UNET))
    save_file(module.state_dict(), tmp_path / "unet.safetensors")
    again = load_module(lambda: UNet(UNET), open_checkpoint(tmp_path / "unet.safetensors"))
    assert same_weights(again, module)
    assert AUTOENCODER.scaling_factor == 0.18215
