"""Single files: written in the original layout, recognised, read back equal; other programs' files; what is refused."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from enlarger.checkpoint.components import COMPONENT_CLASSES, PipelineComponents
from enlarger.checkpoint.config.bundled_configs import clip_tokenizer, family_configs
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.checkpoint.single_file.component_override import read_vae_file
from enlarger.checkpoint.single_file.detect import detect
from enlarger.checkpoint.single_file.key_mapping_vae_clip import original_vae_structure
from enlarger.checkpoint.single_file.load import CONFIGS_METADATA_KEY, INDEX_METADATA_KEY, read_single_file
from enlarger.checkpoint.single_file.save import original_state_dict, save_single_file
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.errors import CheckpointError, EnlargerError, InputError, Unsupported
from enlarger.nn.k_unet import KUNet
from tests.support import k_diffusion, tiny
from tests.support.clip_files import tokenizer_folder
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise
from tests.support.single import FAMILIES, networks, tiny_single
from tests.support.tiny_models import same_weights

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)

UNSAID = {"sd2": "v_prediction"}


@pytest.fixture(scope="module")
def bundles() -> dict[str, PipelineComponents]:
    return {family: tiny_single(family) for family in FAMILIES}


def other_folder(bundle: PipelineComponents, family: str) -> dict[str, Any]:
    """What the x2 upscaler's file needs beside itself."""
    return {name: bundle.components[name] for name in ("vae", "text_encoder")} if family == "x2" else {}


def outputs(bundle: PipelineComponents) -> dict[str, Tensor]:
    """What each network makes of a fixed input."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, module in networks(bundle).items():
            if name == "vae":
                found[name] = module(normal(1, 3, 16, 16))
            elif name.startswith("text"):
                made = module(torch.arange(77)[None])
                found[name] = made.last_hidden_state if made.text_embeds is None else made.text_embeds
            else:
                found[name] = _unet_output(module)
    return found


def _unet_output(unet: Any) -> Tensor:
    config = unet.config
    given: dict[str, Any] = {"tokens": normal(1, 7, config.context_channels)}
    if config.vector_channels is not None:
        given["vector"] = normal(1, config.vector_channels)
    if getattr(config, "num_class_embeds", None) is not None:
        given["label"] = torch.tensor([20])
    return unet(normal(1, config.in_channels, 8, 8), torch.tensor([0.5]), **given)


def strip(path: Path, *keep: str) -> Path:
    """The file with no metadata but these."""
    found = {name: value for name, value in open_checkpoint(path).metadata.items() if name in keep}
    save_file(load_file(path), path, found or None)
    return path


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_read_back_equal(
    bundles: Mapping[str, PipelineComponents], tmp_path: Path, family: str, stated: bool
) -> None:
    """With what our files say of themselves, and without, as if another program had written them."""
    bundle = bundles[family]
    path = save_single_file(bundle, tmp_path / "model.safetensors")
    if not stated:
        strip(path)
    weights = open_checkpoint(path)
    found = detect({name: weights.shape(name) for name in weights.keys()})
    notes = {"prediction": UNSAID[family]} if family in UNSAID and not stated else {}
    assert (found.family, found.kind) == (family, "model")
    # copied, since where a weight begins in memory changes the rounding of products
    again = read_single_file(path, **notes, **other_folder(bundle, family), mmap=False)
    assert list(again.components) == list(bundle.components) and again.path == path
    wanted = outputs(bundle)
    for name, output in outputs(again).items():
        assert same_weights(again.components[name], bundle.components[name]), name
        assert again.components[name].config == bundle.components[name].config, name
        assert output.equal(wanted[name]) and wanted[name].std() > 0.01, name
    for name, part in bundle.components.items():
        if "scheduler" in name:
            assert again.components[name] == part
        elif name.startswith("tokenizer"):
            assert again.components[name] is part, "one tokenizer of each kind serves all"
    assert again.index["_class_name"] == family_configs(family)["model_index"]["_class_name"]
    if family == "x2":
        assert again.components["noise_frequencies"].equal(bundle.components["noise_frequencies"])


@pytest.mark.parametrize("family", ["x4", "sdxl"])
def test_folder_to_file_and_back(bundles: Mapping[str, PipelineComponents], tmp_path: Path, family: str) -> None:
    """The same bits: a diffusers folder, a single file of it, and a folder of that."""
    folder = save_folder(bundles[family], tmp_path / "folder")
    file = save_single_file(read_folder(folder), tmp_path / "a.safetensors")
    again = read_folder(save_folder(read_single_file(file), tmp_path / "again"))
    for name, module in networks(read_folder(folder)).items():
        assert same_weights(again.components[name], module)
        assert again.components[name].config == module.config
    assert save_single_file(again, tmp_path / "b.safetensors").stat().st_size == file.stat().st_size
    assert load_file(tmp_path / "b.safetensors").keys() == load_file(file).keys()


@pytest.mark.parametrize("family", ["sd1", "sd2_depth", "x4", "sdxl", "sdxl_refiner"])
def test_diffusers_converts_what_we_write_to_the_same(bundles: Mapping[str, PipelineComponents], family: str) -> None:
    from diffusers.loaders import single_file_utils as theirs

    parts, tensors = bundles[family].components, original_state_dict(bundles[family])
    kinds = {"unet": theirs.convert_ldm_unet_checkpoint, "vae": theirs.convert_ldm_vae_checkpoint}
    for name, convert in kinds.items():
        writer = COMPONENT_CLASSES["UNet2DConditionModel" if name == "unet" else "AutoencoderKL"].write_config
        found = convert(dict(tensors), config=writer(parts[name].config))
        ours = parts[name].state_dict()
        assert ours.keys() == found.keys() and all(found[key].equal(tensor) for key, tensor in ours.items())


def test_half_precision_and_metadata(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    path = save_single_file(bundles["sd1"], tmp_path / "half.safetensors", torch.float16)
    kept = {"modelspec.title": "A model", "ss_note": "ß", "modelspec.architecture": "of its own"}
    save_file(load_file(path), path, open_checkpoint(path).metadata | kept)
    again = read_single_file(path)
    assert {p.dtype for p in again.components["unet"].parameters()} == {torch.float16}
    assert (
        again.index[INDEX_METADATA_KEY].items() >= kept.items()
        and CONFIGS_METADATA_KEY not in again.index[INDEX_METADATA_KEY]
    )
    wide = read_single_file(path, dtype=torch.float32)
    assert {p.dtype for p in wide.components["unet"].parameters()} == {torch.float32}
    second = open_checkpoint(save_single_file(again, tmp_path / "second.safetensors"))
    assert second.metadata.items() >= kept.items() and second.metadata["format"] == "pt"
    assert second.dtype("model.diffusion_model.out.2.bias") == torch.float16
    assert save_folder(again, tmp_path / "folder").is_dir()


def test_prediction_is_asked_for_and_kept(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    path = save_single_file(bundles["sd2"], tmp_path / "a.safetensors")
    assert read_single_file(path).components["scheduler"]["prediction_type"] == "v_prediction"
    with pytest.raises(InputError) as error:
        read_single_file(strip(path))
    assert str(error.value) == (
        f"{path}: holds Stable Diffusion 2 (text to image, enlarger.generate and enlarger.refine), whose weights do "
        "not tell what they predict. Say prediction='epsilon' (512-base models) or prediction='v_prediction' (768-v "
        "models)."
    )
    base, wide = (read_single_file(path, prediction=each) for each in ("epsilon", "v_prediction"))
    assert (base.index["scheduler"][1], wide.index["scheduler"][1]) == ("PNDMScheduler", "DDIMScheduler")
    assert (base.network_configs["unet"]["sample_size"], wide.network_configs["unet"]["sample_size"]) == (64, 96)
    assert (base.components["unet"].config.upcast_attention, wide.components["unet"].config.upcast_attention) == (
        False,
        True,
    )
    with pytest.raises(InputError, match=r"prediction is 'v', expected one of epsilon, v_prediction, sample"):
        read_single_file(path, prediction="v")
    save_file(load_file(path), path, {"modelspec.prediction_type": "v"})  # as other trainers state it
    assert read_single_file(path).components["scheduler"]["prediction_type"] == "v_prediction"


def test_a_file_with_the_mark_of_v(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    tensors = original_state_dict(bundles["sdxl"]) | {"v_pred": torch.zeros(0)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "v.safetensors")
    found = read_single_file(tmp_path / "v.safetensors")
    assert found.components["scheduler"]["prediction_type"] == "v_prediction"


def test_constants_are_those_of_the_original_code(bundles: Mapping[str, PipelineComponents]) -> None:
    """Ho et al. 2020, over betas of Rombach et al. 2022, in float64 as the original code computes them."""
    for family, (start, end) in {"sd1": (0.00085, 0.012), "x4": (0.0001, 0.02)}.items():
        tensors = original_state_dict(bundles[family])
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), 1000, dtype=torch.float64) ** 2
        kept = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
        assert_close(tensors["betas"], betas.float(), 1e-7)
        assert_close(tensors["alphas_cumprod"], kept.float(), 2e-7)
        assert_close(tensors["sqrt_recipm1_alphas_cumprod"], (1 / kept - 1).sqrt().float(), 1e-4)
        assert_close(tensors["posterior_variance"], (betas * (1 - before) / (1 - kept)).float(), 1e-6)
        assert_close(tensors["posterior_mean_coef2"], ((1 - before) * (1 - betas).sqrt() / (1 - kept)).float(), 1e-4)
    assert sum(name.startswith("low_scale_model.") for name in tensors) == 8
    ids = original_state_dict(bundles["sd1"])["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert ids.equal(torch.arange(77)[None])


@pytest.mark.parametrize(("family", "pad"), [("sd1", "stable-diffusion-v1-5"), ("sd2", "stable-diffusion-2")])
def test_the_bundled_tokenizer_is_the_official_one(tmp_path: Path, family: str, pad: str) -> None:
    from enlarger.text.tokenize import Tokenizer

    official = Tokenizer.from_folder(tokenizer_folder(tmp_path / "t", pad))
    ours = clip_tokenizer("<|endoftext|>" if family == "sd1" else "!")
    assert ours.to_files() == official.to_files() and ours.backend.to_str() == official.backend.to_str()


class Surrounding(nn.Module):
    """As the x2 upscaler's notebook wraps k-diffusion's network."""

    def __init__(self) -> None:
        super().__init__()
        image_v1, layers = k_diffusion.load("models.image_v1"), k_diffusion.load("layers")
        self.inner_model = image_v1.ImageDenoiserModelV1(
            4, 64, (1, 2, 2), (32, 64, 64), (False, False, True), (False, True, True),
            mapping_cond_dim=128 + 64, unet_cond_dim=4, cross_cond_dim=64, has_variance=True,
        )  # fmt: skip
        self.low_res_noise_embed = layers.FourierFeatures(1, 128, std=2)


@pytest.fixture(scope="module")
def surrounding() -> Surrounding:
    return randomise(Surrounding())


@pytest.mark.parametrize("form", ["pth", "safetensors", "bare"])
def test_k_diffusions_own_file(
    bundles: Mapping[str, PipelineComponents], surrounding: Surrounding, tmp_path: Path, form: str
) -> None:
    """The trainer's file with both copies, the averaged one alone, and the network without what surrounds it."""
    path, options = tmp_path / "x2.safetensors", dict[str, Any]()
    weights = surrounding.state_dict()
    if form == "pth":
        path, options = tmp_path / "x2.pth", {"allow_pickle": True}
        other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        torch.save({"model": other, "model_ema": weights, "epoch": 3, "step": 100}, path)
    else:
        save_file(weights if form == "safetensors" else surrounding.inner_model.state_dict(), path)
    given = other_folder(bundles["x2"], "x2")
    found = read_single_file(path, **given, **options)
    unet = found.components["unet"]
    assert isinstance(unet, KUNet) and found.index["_class_name"] == "StableDiffusionLatentUpscalePipeline"
    x, low, time = normal(1, 4, 16, 16), normal(1, 4, 16, 16, seed=2), torch.tensor([0.3])
    tokens, vector = normal(1, 7, 64), normal(1, 192)
    with torch.inference_mode():
        ours = unet(torch.cat([x, low], 1), time, tokens=tokens, vector=vector)
        theirs = surrounding.inner_model(x, (4 * time).exp(), vector, low, tokens, torch.zeros(1, 7))
    assert theirs.std() > 0.1
    assert_close(ours[:, :4], theirs, 1e-5)
    if form != "bare":
        assert found.components["noise_frequencies"].equal(surrounding.low_res_noise_embed.weight)
        assert found.components["noise_frequencies"].dtype == torch.float32
    written = save_single_file(found, tmp_path / "again.safetensors")
    again = load_file(written)
    if form != "bare":
        assert again.keys() == weights.keys() and all(again[name].equal(weights[name]) for name in again)
        surrounding.load_state_dict(again, strict=True)


def test_x2_file_says_what_it_lacks(
    surrounding: Surrounding, bundles: Mapping[str, PipelineComponents], tmp_path: Path
) -> None:
    save_file(surrounding.state_dict(), tmp_path / "x2.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_single_file(tmp_path / "x2.safetensors", vae=bundles["x2"].components["vae"])
    assert str(error.value).endswith(
        "enlarger.upscale) without text_encoder, as the original file does. Pass text_encoder=, CLIP ViT-L/14 "
        "(openai/clip-vit-large-patch14, or any Stable Diffusion 1 model)."
    )
    with pytest.raises(CheckpointError, match=r"without text_encoder and vae, .*vae-ft-mse-840000"):
        read_single_file(tmp_path / "x2.safetensors")
    with pytest.raises(InputError, match=r"prediction is 'epsilon'; the x2 upscaler has none but its own"):
        read_single_file(tmp_path / "x2.safetensors", prediction="epsilon")
    wrong = bundles["sd2"].components["text_encoder"]
    unlike = randomise(type(wrong)(type(wrong.config)(32, 1, 1, 32, "gelu", 300)))
    with pytest.raises(CheckpointError, match=r"UNet reads text of width 64, its text encoders make 32"):
        read_single_file(tmp_path / "x2.safetensors", vae=bundles["x2"].components["vae"], text_encoder=unlike)


def test_parts_from_elsewhere(
    surrounding: Surrounding, bundles: Mapping[str, PipelineComponents], tmp_path: Path
) -> None:
    """The two parts that the x2 file lacks: from a model's folder, parts' own folders, single files, a whole CLIP."""
    save_file(surrounding.state_dict(), tmp_path / "x2.safetensors")
    sd1 = bundles["sd1"]
    folder = save_folder(sd1, tmp_path / "sd1")
    single = save_single_file(sd1, tmp_path / "sd1.safetensors")
    text = folder / "text_encoder" / "model.safetensors"
    clip = {"text_projection.weight": torch.ones(2, 2), "vision_model.x": torch.ones(1), "logit_scale": torch.ones(())}
    save_file(load_file(text) | clip, tmp_path / "clip.safetensors")
    for vae, encoder in (
        (folder, folder),
        (folder / "vae", folder / "text_encoder"),
        (single, single),
        (folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "clip.safetensors"),
    ):
        found = read_single_file(tmp_path / "x2.safetensors", vae=vae, text_encoder=str(encoder))
        for name in ("vae", "text_encoder"):
            assert same_weights(found.components[name], sd1.components[name])
            assert found.components[name].config == sd1.components[name].config
    with pytest.raises(CheckpointError, match=r"holds a CLIP text encoder with transformers' names, expected a vae"):
        read_single_file(tmp_path / "x2.safetensors", vae=text, text_encoder=text)


def test_sdxl_from_several_files(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    """A file of the UNet and autoencoder alone, and its encoders in any form that people have them."""
    sdxl, tensors = bundles["sdxl"], original_state_dict(bundles["sdxl"])
    alone = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.startswith("conditioner.")}
    save_file(alone, tmp_path / "unet.safetensors")
    folder, whole = save_folder(sdxl, tmp_path / "xl"), save_single_file(sdxl, tmp_path / "xl.safetensors")
    prefix = "conditioner.embedders.1.model."
    open_clip = {n.removeprefix(prefix): t.contiguous() for n, t in tensors.items() if n.startswith(prefix)}
    save_file(open_clip, tmp_path / "clip_g.safetensors")
    second = (folder, folder / "text_encoder_2", whole, folder / "text_encoder_2" / "model.safetensors")
    first = (folder, folder / "text_encoder", whole, folder / "text_encoder" / "model.safetensors")
    for one, other in zip((*first, first[0]), (*second, tmp_path / "clip_g.safetensors"), strict=True):
        found = read_single_file(tmp_path / "unet.safetensors", text_encoder=one, text_encoder_2=other)
        for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
            assert same_weights(found.components[name], sdxl.components[name])
            assert found.components[name].config == sdxl.components[name].config
    with pytest.raises(CheckpointError, match=r"without text_encoder_2. Pass text_encoder_2=, a folder or a file"):
        read_single_file(tmp_path / "unet.safetensors", text_encoder=folder)
    with pytest.raises(CheckpointError, match=r"has no text_projection.weight, expected SDXL's second text encoder"):
        read_single_file(tmp_path / "unet.safetensors", text_encoder=folder, text_encoder_2=first[3])
    with pytest.raises(InputError, match=r"which has no text_encoder_2; leave it out"):
        read_single_file(save_single_file(bundles["sd1"], tmp_path / "sd1.safetensors"), text_encoder_2=folder)


def test_vae_files(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    """Alone as the fine-tuned ones are, in either layout, old names too, pickled; and inside a whole model."""
    bundle = bundles["sd1"]
    wanted: Any = bundle.components["vae"]
    single = save_single_file(bundle, tmp_path / "sd1.safetensors")
    prefix = "first_stage_model."
    alone = {n.removeprefix(prefix): t for n, t in load_file(single).items() if n.startswith(prefix)}
    save_file(alone, tmp_path / "vae.safetensors")
    torch.save({"state_dict": alone | {"loss.logvar": torch.zeros(())}}, tmp_path / "vae.ckpt")
    save_file({prefix + n: t for n, t in alone.items()}, tmp_path / "prefixed.safetensors")
    ours = save_folder(bundle, tmp_path / "f") / "vae" / "diffusion_pytorch_model.safetensors"
    for path in (single, tmp_path / "vae.safetensors", tmp_path / "vae.ckpt", tmp_path / "prefixed.safetensors", ours):
        found = read_vae_file(path, allow_pickle=True)
        assert same_weights(found, wanted) and found.config == wanted.config
    assert read_vae_file(tmp_path / "vae.safetensors", family="sdxl").config.scaling_factor == 0.13025
    with pytest.raises(CheckpointError, match=r"vae\.ckpt: not opened, since it is a pickle"):
        read_vae_file(tmp_path / "vae.ckpt")
    x4 = save_single_file(bundles["x4"], tmp_path / "x4.safetensors")
    assert read_vae_file(x4).config.scaling_factor == 0.08333
    other = read_single_file(single, vae=tmp_path / "vae.ckpt", allow_pickle=True)
    assert same_weights(other.components["vae"], wanted)
    with pytest.raises(
        CheckpointError, match=r"vae\.safetensors: holds an autoencoder of Stable Diffusion 1, 2 or XL, e"
    ):
        read_single_file(tmp_path / "vae.safetensors")


def test_configs_of_a_folder(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    single = strip(save_single_file(bundles["sd1"], tmp_path / "sd1.safetensors"))
    (tmp_path / "c" / "scheduler").mkdir(parents=True)
    euler = family_configs("sdxl")["scheduler"]
    (tmp_path / "c" / "scheduler" / "scheduler_config.json").write_text(json.dumps(euler))
    assert read_single_file(single, config=tmp_path / "c").components["scheduler"] == euler
    v = family_configs("sd2")["scheduler"]
    (tmp_path / "c" / "scheduler" / "scheduler_config.json").write_text(json.dumps(v))
    assert read_single_file(single, config=tmp_path / "c").index["scheduler"] == ["diffusers", "DDIMScheduler"]
    sd2 = strip(save_single_file(bundles["sd2"], tmp_path / "sd2.safetensors"))
    assert read_single_file(sd2, config=tmp_path / "c").components["scheduler"] == v
    with pytest.raises(InputError, match=r"found no model_index.json and no component's config.json"):
        read_single_file(single, config=tmp_path)


def test_averaged_weights(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in original_state_dict(bundles["sd1"]).items()}
    inside = [name for name in tensors if name.startswith("model.diffusion_model.")]
    copies = {f"model_ema.{n.removeprefix('model.').replace('.', '')}": tensors[n] + 1 for n in inside}
    torch.save({"state_dict": tensors | copies, "global_step": 7}, tmp_path / "full.ckpt")
    trained, averaged = (
        read_single_file(tmp_path / "full.ckpt", allow_pickle=True, ema=ema).components["unet"] for ema in (False, True)
    )
    assert same_weights(trained, bundles["sd1"].components["unet"])
    assert averaged.conv_in.weight.equal(trained.conv_in.weight + 1)


def test_depth_networks_file(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in original_state_dict(bundles["sd2_depth"]).items()}
    save_file(tensors | {"depth_model.model.pretrained.x": torch.zeros(3)}, tmp_path / "depth.safetensors")
    found = read_single_file(tmp_path / "depth.safetensors")
    assert found.skipped == ("depth_estimator",) and found.components["unet"].config.in_channels == 5
    save_file(
        tensors | {"control.x": torch.zeros(3), "model.diffusion_model.new.weight": torch.zeros(3)},
        tmp_path / "b.safetensors",
    )
    with pytest.warns(UserWarning, match=r"left out 2 tensors that no network needs: (control.x|model.diff)"):
        read_single_file(tmp_path / "b.safetensors")


def test_open_clips_whole_tower(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    """Its last layer, its projection and its scale are not read."""
    prefix = "cond_stage_model.model."
    tensors = {name: tensor.contiguous() for name, tensor in original_state_dict(bundles["sd2_inpainting"]).items()}
    last = {n.replace("resblocks.1.", "resblocks.2."): t + 1 for n, t in tensors.items() if "resblocks.1." in n}
    more = {prefix + "text_projection": torch.ones(64, 64), prefix + "logit_scale": torch.ones(())}
    save_file(tensors | last | more, tmp_path / "whole.safetensors")
    found = read_single_file(tmp_path / "whole.safetensors")
    assert same_weights(found.components["text_encoder"], bundles["sd2_inpainting"].components["text_encoder"])


def test_damage_is_named(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in original_state_dict(bundles["sd1"]).items()}
    path = tmp_path / "a.safetensors"
    missing = {n: t for n, t in tensors.items() if n != "model.diffusion_model.middle_block.0.in_layers.2.weight"}
    save_file(missing, path)
    with pytest.raises(CheckpointError, match=r"1 weights missing: mid_block.resnets.0.conv1.weight"):
        read_single_file(path)
    save_file(tensors | {"first_stage_model.decoder.conv_out.bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"decoder.conv_out.bias \(found \(4,\), expected \(3,\)\)"):
        read_single_file(path)
    save_file({n: t for n, t in tensors.items() if not n.startswith("cond_stage")}, path)
    with pytest.raises(CheckpointError, match=r"without text_encoder. Pass text_encoder=, a folder or a file of them"):
        read_single_file(path)
    save_file(tensors, path, {CONFIGS_METADATA_KEY: "[1]"})
    with pytest.raises(CheckpointError, match=r"its metadata enlarger.configs is damaged"):
        read_single_file(path)
    save_file(tensors | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3)}, path)
    with pytest.raises(Unsupported, match=r"with 8 input channels, as InstructPix2Pix has them; supported: 4 \(Stable"):
        read_single_file(path)


DAMAGE = ("drop", "flatten", "empty", "wider", "number")
SIGNS = {  # weights that tell families and sizes, by the end of their names
    "sd1": ("input_blocks.0.0.weight", "time_embed.0.weight", "encoder.down.0.block.0.norm1.weight",
            "token_embedding.weight", "0.attn2.to_k.weight"),
    "sdxl_refiner": ("label_emb.0.0.weight", "in_proj_bias", "middle_block.1.proj_in.weight", "text_projection"),
    "x2": ("d_blocks.0.1.main.2.weight", "mapping_cond.weight", "kv_proj.weight", "timestep_embed.weight"),
}  # fmt: skip


def damaged(tensors: dict[str, Tensor], kind: str, name: str) -> dict[str, Tensor]:
    """A file with one weight lost, or of another shape."""
    tensor = tensors.pop(name)
    changed = {
        "drop": {},
        "flatten": {name: tensor.reshape(-1)},
        "empty": {name: tensor[:0]},
        "wider": {name: torch.zeros([side + 1 for side in tensor.shape])},
        "number": {name: torch.zeros(())},
    }
    return tensors | changed[kind]


@pytest.mark.parametrize("family", SIGNS)
def test_any_damage_is_an_error_of_ours(bundles: Mapping[str, PipelineComponents], tmp_path: Path, family: str) -> None:
    whole = {name: tensor.contiguous() for name, tensor in original_state_dict(bundles[family]).items()}
    silent = []
    for sign in SIGNS[family]:
        name = next(name for name in whole if name.endswith(sign))
        for kind in DAMAGE:
            save_file(damaged(dict(whole), kind, name), tmp_path / "bad.safetensors")
            try:
                read_single_file(tmp_path / "bad.safetensors", **other_folder(bundles[family], family))
                silent.append(f"{kind} {sign}")
            except EnlargerError as error:
                assert "bad.safetensors" in str(error)
    same = {"sd1": "encoder.down.0.block.0.norm1.weight", "x2": "timestep_embed.weight", "sdxl_refiner": "in_proj_bias"}
    assert silent == [f"flatten {same[family]}"], "what flattening does not change"


def test_numbers_out_of_the_row_cost_nothing() -> None:
    huge = "encoder.down.999999999.block.888888888.norm1.weight"
    assert original_vae_structure({huge, "encoder.down.0.block.0.norm1.weight"}).levels == 1


def test_writing_refuses(bundles: Mapping[str, PipelineComponents], tmp_path: Path) -> None:
    path = save_single_file(bundles["sd1"], tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a.safetensors: already exists"):
        save_single_file(bundles["sd1"], path)
    with pytest.raises(InputError, match=r"ends in '.ckpt', expected .safetensors"):
        save_single_file(bundles["sd1"], tmp_path / "a.ckpt")
    with torch.device("meta"):
        ghost = type(bundles["sd1"].components["unet"])(bundles["sd1"].components["unet"].config)
    lost = PipelineComponents(tmp_path, bundles["sd1"].index, {**bundles["sd1"].components, "unet": ghost})
    with pytest.raises(InputError, match=r"is without memory"):
        save_single_file(lost, path, overwrite=True)
    none = PipelineComponents(tmp_path, {}, {n: p for n, p in bundles["sd1"].components.items() if n != "vae"})
    with pytest.raises(InputError, match=r"has no vae, which a single file of this family holds"):
        save_single_file(none, tmp_path / "b.safetensors")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert save_single_file(bundles["sd1"], path, overwrite=True).read_bytes() == before
    assert struct.unpack("<Q", before[:8])[0] % 8 == 0
