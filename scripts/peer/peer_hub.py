"""Small local stand-ins, made with random weights, for the hub's test repositories that diffusers' fast tests name."""

import functools
import importlib.util
import json
import os
import pathlib
from typing import Any

_place = pathlib.Path(__file__).resolve().parents[2] / "tests/support/clip_files.py"
_spec = importlib.util.spec_from_file_location("clip_files", _place)
_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_files)
vocabulary_and_merges = _files.vocabulary_and_merges

HUB = pathlib.Path(os.environ["PEER_HUB"])


def tokenizer_folder(root: Any, size: Any = 1000, pad: Any = "<|endoftext|>") -> Any:
    """CLIP's tokenizer cut to `size` tokens."""
    root.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = vocabulary_and_merges()
    merges = merges[: size - 512 - 2]
    letters = list(vocabulary)[:512]
    tokens = [*letters, *("".join(m.split()) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (root / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (root / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (root / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (root / "tokenizer_config.json").write_text(json.dumps(config))


def _clip(root: Any) -> Any:
    tokenizer_folder(root)


def _dpt(root: Any) -> Any:
    from transformers import DPTImageProcessor

    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(local("hf-internal-testing/tiny-random-clip"))


def _text(hidden: Any = 32, projection: Any = None, act: Any = "quick_gelu") -> Any:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(5)
    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=hidden,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        pad_token_id=1,
        vocab_size=1000,
        hidden_act=act,
        projection_dim=projection or hidden,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _vae() -> Any:
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(6)
    return AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        sample_size=64,
    ).eval()


def _unet(cross: Any = 32, **more: Any) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(7)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=32,
        **{"in_channels": 4, "out_channels": 4, **more},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
    ).eval()


def _sd(root: Any, checker: Any = True) -> Any:
    import diffusers

    real = REAL
    scheduler = diffusers.schedulers.scheduling_pndm.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    real["StableDiffusionPipeline"](
        vae=_vae(),
        text_encoder=_text(),
        tokenizer=_tokenizer(),
        unet=_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(root)


def _xl(root: Any, kind: Any = "StableDiffusionXLPipeline", refiner: Any = False, channels: Any = 4) -> Any:
    import diffusers

    real = REAL
    size = 5 if refiner else 6
    unet = _unet(
        32 if refiner else 64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=size * 8 + 32,
        in_channels=channels,
    )
    scheduler = diffusers.schedulers.scheduling_euler_discrete.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    more = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False} if refiner else {}
    real[kind](
        vae=_vae(),
        text_encoder=None if refiner else _text(),
        tokenizer=None if refiner else _tokenizer(),
        text_encoder_2=_text(projection=32, act="gelu"),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
        **more,
    ).save_pretrained(root)


def _clip_text(root: Any) -> Any:
    tokenizer_folder(root)
    _text(projection=32).save_pretrained(root)


MAKERS = {
    "peft-internal-testing/tiny-clip-text-2": _clip_text,
    "hf-internal-testing/tiny-random-clip": _clip,
    "hf-internal-testing/tiny-random-DPTForDepthEstimation": _dpt,
    "hf-internal-testing/tiny-stable-diffusion-torch": _sd,
    "hf-internal-testing/tiny-stable-diffusion-pipe": _sd,
    "hf-internal-testing/tiny-sd-pipe": _sd,
    "hf-internal-testing/tiny-stable-diffusion-xl-pipe": _xl,
    "hf-internal-testing/tiny-stable-diffusion-xl-refiner-pipe": functools.partial(
        _xl, kind="StableDiffusionXLImg2ImgPipeline", refiner=True
    ),
    "hf-internal-testing/tiny-stable-diffusion-xl-inpaint-pipe": functools.partial(
        _xl, kind="StableDiffusionXLInpaintPipeline", channels=9
    ),
}
REAL = {}


def local(name: Any) -> Any:
    """The stand-in's folder, or the name as it is."""
    if not isinstance(name, str) or name not in MAKERS:
        return name
    root = HUB / name.split("/")[1]
    if not (root / ".done").exists():
        MAKERS[name](root)
        (root / ".done").write_text("")
    return str(root)


def _redirect(cls: Any, method: Any = "from_pretrained") -> Any:
    for owner in cls.__mro__:
        if method in vars(owner):
            break
    original = vars(owner)[method].__func__
    if getattr(original, "_redirected", False):
        return

    @functools.wraps(original)
    def read(kind: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        return original(kind, local(name), *args, **kwargs)

    read._redirected = True
    setattr(owner, method, classmethod(read))


def install(real: Any) -> Any:
    import transformers

    REAL.update(real)
    for cls in (
        transformers.CLIPTokenizer,
        transformers.DPTImageProcessor,
        transformers.CLIPTextModel,
        real["DiffusionPipeline"],
    ):
        _redirect(cls)
    for name in ("AutoPipelineForText2Image", "AutoPipelineForImage2Image", "AutoPipelineForInpainting"):
        _redirect(real[name])
    for name in MAKERS:
        if os.environ.get("PEER_MAKE_HUB"):
            local(name)


def install_ours(classes: Any) -> Any:
    for cls in classes:
        _redirect(cls)
