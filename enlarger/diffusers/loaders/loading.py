"""What `from_pretrained` and `from_single_file` take besides a path: obeyed, without effect, or refused by name."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.unsupported import INSTEAD
from enlarger.errors import Unsupported
from enlarger.runtime.choices import DTYPES

log = logging.getLogger(__name__)
NO_EFFECT = (  # of downloading, or how loading is always done
    "cache_dir", "token", "force_download", "local_files_only", "low_cpu_mem_usage", "use_safetensors", "revision",
    "proxies", "mirror", "resume_download", "use_auth_token", "offload_folder", "offload_state_dict", "max_memory",
    "requires_safety_checker", "output_loading_info", "provider", "user_agent",
    "local_dir", "local_dir_use_symlinks", "return_cached_folder", "offload_buffers",
)  # fmt: skip
REFUSED = {
    "custom_pipeline": "pipelines of other people's code are not run; use the classes here",
    "trust_remote_code": "pipelines of other people's code are not run; use the classes here",
    "custom_revision": "pipelines of other people's code are not run; use the classes here",
    "quantization_config": "weights are not quantised here; use torch_dtype=torch.float16",
    "load_safety_checker": "a single file holds none; pass one as safety_checker=",
    "extract_ema": "use enlarger.checkpoint's read_single_file(ema=True), or convert the file",
    "from_flax": "weights of flax are not read; use safetensors",
    "use_flax": "weights of flax are not read; use safetensors",
    "use_onnx": "networks of ONNX are not run; use safetensors",
    "original_config": "what a file's network is comes from its weights; give config=FOLDER in diffusers' layout",
    "original_config_file": "what a file's network is comes from its weights; give config=FOLDER in diffusers' layout",
    "config_files": "what a file's network is comes from its weights; give config=FOLDER in diffusers' layout",
    "scheduler_type": "give scheduler=, made by from_config of the class that is wanted",
    "image_size": "give height and width to the call",
    "num_in_channels": "how many channels a network takes is read from its weights",
    "upcast_attention": "give torch_dtype=torch.float32",
    "enable_pag": "perturbed-attention guidance is not here; use guidance_scale and guidance_rescale",
    "pag_applied_layers": "perturbed-attention guidance is not here; use guidance_scale and guidance_rescale",
    "controlnet": INSTEAD["ControlNet"],
    "adapter": INSTEAD["T2I-Adapter"],
    "motion_adapter": INSTEAD["other classes"],
    "dduf_file": "files of DDUF are not read; use the model's folder",
}
OBEYED = ("device_map", "disable_mmap")
SAID = ("force_download", "cache_dir", "proxies")  # that nothing is downloaded is worth a line


@dataclass(frozen=True)
class Loading:
    """Where the parts go and in which precision: one for all, or by name."""

    dtype: torch.dtype | None
    dtypes: Mapping[str, torch.dtype | None]
    device: torch.device | None
    mmap: bool  # whether weights stay in their files


def read_options(dtype: object, options: Mapping[str, object]) -> Loading:
    """The options of a call; Unsupported for those that cannot be."""
    for name, value in options.items():
        if name in REFUSED and value:
            raise Unsupported(f"{name} is not available: {REFUSED[name]}")
        if name not in (*NO_EFFECT, *REFUSED, *OBEYED) and value is not None:
            raise Unsupported(
                f"from_pretrained has no {name}={value!r}; it takes parts, torch_dtype and variant by name"
            )
    say_no_effect(options)
    by_name: dict[str, Any] = dict(dtype) if isinstance(dtype, Mapping) else {}  # pyright: ignore[reportUnknownArgumentType] - a user's
    default = by_name.pop("default", None) if by_name else cast("Any", dtype)
    found = {name: parse_dtype(one) for name, one in by_name.items()}
    return Loading(parse_dtype(default), found, _device(options.get("device_map")), not options.get("disable_mmap"))


def say_no_effect(options: Mapping[str, object]) -> None:
    """A line in the log for each of the options that are of downloading."""
    for name in SAID:
        if options.get(name):
            log.warning("%s has no effect: nothing is downloaded, what lies there is read as it is", name)


def _device(device_map: Any) -> torch.device | None:
    """The one device of a map."""
    if isinstance(device_map, Mapping):
        places = {str(place) for place in device_map.values()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - a user's
        if len(places) != 1:
            raise ArgumentError(f"device_map names {', '.join(sorted(places))}; a pipeline is on one device here")
        return torch.device(places.pop())
    if device_map in (None, "balanced", "auto"):
        wanted = device_map is not None and torch.accelerator.is_available()
        return torch.accelerator.current_accelerator() if wanted else None
    return torch.device(device_map)


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A precision or its name; None and "auto" are the file's own."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto" and dtype not in DTYPES:
        raise ArgumentError(f"torch_dtype is {dtype!r}, expected a torch.dtype, 'auto' or one of {', '.join(DTYPES)}")
    return None if dtype == "auto" else DTYPES[dtype]
