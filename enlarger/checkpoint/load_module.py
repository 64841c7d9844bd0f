"""From named tensors to a module: built without memory, filled strictly, every difference named."""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from enlarger.checkpoint.families import FAMILIES, detect_unet_family
from enlarger.checkpoint.tensors.open import LazyTensors
from enlarger.errors import CheckpointError, Unsupported, list_names

# Attention names in autoencoders saved before diffusers renamed them (facts of the official SD1 and SD2 files).
LEGACY_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
LEGACY_ATTENTION_PATTERN = re.compile(r"(\.mid_block\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")

QUANTISED_KEY_ENDINGS = (  # of bitsandbytes, GPTQ and AWQ, quanto, torchao, and ComfyUI's scaled float8
    ".absmax", ".quant_map", ".nested_absmax", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4",
    ".SCB", ".weight_format", ".qweight", ".qzeros", ".g_idx", "._data", "._scale", ".scale_weight", ".weight_scale",
    ".comfy_quant", ".scale_input", ".input_scale",
)  # fmt: skip
Shape = tuple[int, ...]
KeyRename = Callable[[str], str | None]


def to_current_key(name: str) -> str | None:
    """The name that our modules have for a weight of an official file; None for one that is not a weight.

    Text encoders lose the prefix `text_model.` and the constant `position_ids`; old autoencoder attentions are
    renamed.
    """
    if name.endswith("position_ids"):
        return None
    return LEGACY_ATTENTION_PATTERN.sub(
        lambda match: match[1] + LEGACY_ATTENTION_KEYS[match[2]], name.removeprefix("text_model.")
    )


def load_module(
    factory: Callable[[], nn.Module],
    weights: LazyTensors,
    rename: KeyRename = to_current_key,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The module that `factory` makes, in evaluation mode and without gradients, with the tensors of a file.

    `dtype` converts floating weights while they are read; None keeps the file's types. The weights are in memory
    once; those that need no conversion stay in a file that was opened to be mapped, which may be replaced or deleted
    afterwards, but not written to. Raises `CheckpointError` naming missing, unexpected and misshapen weights.
    """
    try:
        with torch.device("meta"), _WithoutInitialValues():
            module = factory()
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{weights.path}: the config beside it describes no network ({error}).") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    source_keys = _source_keys(weights, rename)
    mismatch = state_dict_mismatch(shapes, {name: weights.shape(source) for name, source in source_keys.items()})
    if mismatch is not None:
        raise CheckpointError(f"{weights.path}: {mismatch}")
    check_floating(weights, source_keys, module)
    tensors: dict[str, Tensor] = {name: weights.get_tensor(source, dtype) for name, source in source_keys.items()}
    module.load_state_dict(tensors, assign=True)
    held: Any = chain(module.named_parameters(), module.named_buffers())
    assert not any(tensor.is_meta for _, tensor in held), "a buffer that no file fills must be computed in forward"
    return module.eval().requires_grad_(False)


class _WithoutInitialValues(TorchFunctionMode):
    """Nothing is drawn for weights that a file replaces; even without memory that takes longer than mapping them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named: Mapping[str, Any] = {} if kwargs is None else kwargs
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def check_floating(weights: LazyTensors, source_keys: Mapping[str, str], module: nn.Module) -> None:
    """Raises `CheckpointError` where weights are whole numbers, as programs that quantise leave them."""
    expected = dict(module.named_parameters())
    whole = [key for name, key in source_keys.items() if name in expected and not weights.dtype(key).is_floating_point]
    if whole:
        dtype = str(weights.dtype(whole[0])).removeprefix("torch.")
        raise CheckpointError(quantised_message(weights.path, f"{len(whole)} weights are {dtype}: {list_names(whole)}"))


def quantised_message(path: object, found: str) -> str:
    """That a file is quantised, and what to do."""
    return (
        f"{path}: {found}; expected floating-point numbers. The file was quantised for another program: fetch the "
        "same model in float16, bfloat16 or float32."
    )


def check_unquantised(weights: LazyTensors) -> None:
    """Raises `CheckpointError` where what quantising programs store beside weights is there: scales, tables, zeros."""
    marks = [name for name in weights.keys() if name.endswith(QUANTISED_KEY_ENDINGS)]
    if marks:
        raise CheckpointError(
            quantised_message(weights.path, f"{len(marks)} tensors belong to quantised weights: {list_names(marks)}")
        )


def _source_keys(weights: LazyTensors, rename: KeyRename) -> dict[str, str]:
    """For each of our names the name in the file."""
    sources: dict[str, str] = {}
    for source in weights.keys():
        name = rename(source)
        if name in sources:
            raise CheckpointError(
                f"{weights.path}: {source} and {sources[name]} are both {name}; expected one of them."
            )
        if name is not None:
            sources[name] = source
    return sources


def state_dict_mismatch(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """What is missing, unexpected or misshapen, and what the weights look like; None where all agree."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} (found {found[name]}, expected {shape})"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    parts = [f"{len(names)} weights {kind}: {list_names(names)}" for kind, names in kinds if names]
    if not parts:
        return None
    found_network, expected_network = guess_network(found), guess_network(expected)
    advice = f"The file looks like {found_network}, its config like {expected_network}"
    advice += (
        "; it is incomplete or changed."
        if found_network == expected_network
        else f"; bring config and weights of one model together.{_usage_hint(found)}"
    )
    return f"{'; '.join(parts)}. {advice}"


def _usage_hint(shapes: Mapping[str, Shape]) -> str:
    """What a UNet of these shapes is for."""
    try:
        return f" These weights are for {FAMILIES[detect_unet_family(shapes)].purpose}."
    except (Unsupported, KeyError):
        return ""


def guess_network(shapes: Mapping[str, Shape]) -> str:
    """What weights look like, by the names and shapes in which the official models differ."""

    def width(name: str, axis: int) -> int | None:
        return shapes[name][axis] if name in shapes and len(shapes[name]) > axis else None

    for marker, meaning in NETWORK_MARKERS.items():
        if any(marker in name for name in shapes):
            return meaning
    if (text := width("embeddings.token_embedding.weight", 1)) is not None:
        return TEXT_ENCODER_NAMES.get(text, f"a CLIP text encoder of width {text}")
    if "decoder.conv_in.weight" in shapes and "encoder.conv_in.weight" in shapes:
        levels = {name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")}
        return f"an AutoencoderKL with {len(levels)} levels (8 pixels per latent have 4 levels, the x4 upscaler's 3)"
    if "time_embedding.linear_1.weight" in shapes:
        context = next((shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)
        vector = width("add_embedding.linear_1.weight", 1)
        kind = UNET_NAMES.get((context, vector), f"a UNet with context width {context}")
        return f"{kind}, {width('conv_in.weight', 1)} input channels"
    return "none of the networks known here"


NETWORK_MARKERS = {
    "lora_": "a LoRA, an addition to a model and no model",
    "model.diffusion_model.": "a whole model in a single file, not a part in a folder",
    "first_stage_model.": "a whole model in a single file, not a part in a folder",
    "vision_model.": "a CLIP model with its image half, not the text encoder alone",
    "time_proj.weight": "the UNet of the x2 latent upscaler",
    "class_embedding.weight": "the UNet of the x4 upscaler",
    "controlnet_": "a ControlNet, an addition to a model and no model",
    "transformer_blocks.0.attn.": "a transformer (SD3, Flux or later), which this package does not run",
}
TEXT_ENCODER_NAMES = {
    768: "CLIP ViT-L's text encoder (SD1, the x2 upscaler, SDXL's text_encoder)",
    1024: "CLIP ViT-H's text encoder (SD2, the x4 upscaler)",
    1280: "CLIP bigG's text encoder (SDXL's text_encoder_2)",
}
UNET_NAMES: dict[tuple[int | None, int | None], str] = {
    (768, None): "a UNet of Stable Diffusion 1",
    (1024, None): "a UNet of Stable Diffusion 2",
    (2048, 2816): "the UNet of SDXL base",
    (1280, 2560): "the UNet of the SDXL refiner",
}
