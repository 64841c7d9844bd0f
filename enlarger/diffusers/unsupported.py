"""What is left out, and what to do instead: each name of diffusers' raises one sentence."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from enlarger.errors import Unsupported

INSTEAD: Mapping[str, str] = {
    "IP-Adapter": "there are no IP adapters; LoRA and textual inversion are here",
    "ControlNet": "there are no ControlNets; the depth pipeline keeps a picture's layout, image-to-image its colours",
    "T2I-Adapter": "there are no T2I adapters; the depth pipeline keeps a picture's layout",
    "push_to_hub": "save to a folder and use huggingface_hub's upload_folder",
    "downloads": "nothing is downloaded here; fetch the model once with `enlarger pull` and give its folder",
    "caches of layers": "none is kept between steps; use fewer steps, LCM or TCD",
    "layerwise casting": "weights are kept in the type they compute in; use torch_dtype=torch.float16, or an offload",
    "adapters of one network": "adapters are the pipeline's; use its load_lora_weights, set_adapters and fuse_lora",
    "inside of LoRA loading": "load_lora_weights reads a LoRA into the whole pipeline, save_lora_weights writes one",
    "offload of one network": "use the pipeline's enable_group_offload or enable_model_cpu_offload",
    "other attention": "attention is torch's own, on one device; leave it out",
    "quantised weights": "weights are not quantised here; use torch_dtype=torch.float16",
    "pieces of a network": "call the network whole, or take it apart as `native`",
    "formulas of a step": "use step, which does all of it; its formulas are those of enlarger.diffusion.solvers",
    "insides of configs": "use config, from_pretrained and save_pretrained",
    "other classes": "import it from diffusers, whose autoencoders, networks and schedulers of Stable Diffusion "
    "pipelines take here, or use one of enlarger.diffusers.__all__",
}
METHODS: Mapping[str, tuple[str, ...]] = {
    "IP-Adapter": ("load_ip_adapter", "set_ip_adapter_scale", "encode_image", "prepare_ip_adapter_image_embeds"),
    "push_to_hub": ("push_to_hub",),
    "downloads": ("download",),
    "caches of layers": ("enable_cache",),
    "layerwise casting": ("enable_layerwise_casting",),
    "adapters of one network": (
        "load_lora_adapter", "save_lora_adapter", "load_attn_procs", "save_attn_procs", "add_adapter", "load_adapter",
        "set_adapter", "set_adapters", "active_adapters", "enable_adapters", "disable_adapters", "delete_adapter",
        "delete_adapters", "enable_lora", "disable_lora", "enable_lora_hotswap", "fuse_lora", "unfuse_lora",
        "unload_lora",
    ),
    "inside of LoRA loading": (
        "load_lora_into_unet", "load_lora_into_text_encoder", "pack_weights", "write_lora_layers",
    ),
    "offload of one network": ("enable_group_offload",),
    "other attention": (
        "enable_npu_flash_attention", "disable_npu_flash_attention", "set_use_npu_flash_attention",
        "enable_xla_flash_attention", "disable_xla_flash_attention", "set_use_xla_flash_attention",
        "enable_parallelism",
    ),
    "quantised weights": ("dequantize",),
    "pieces of a network": (
        "get_aug_embed", "get_class_embed", "get_time_embed", "process_encoder_hidden_states", "blend_h", "blend_v",
    ),
    "formulas of a step": (
        "convert_model_output", "deis_first_order_update", "multistep_deis_second_order_update",
        "multistep_deis_third_order_update", "dpm_solver_first_order_update",
        "multistep_dpm_solver_second_order_update",
        "multistep_dpm_solver_third_order_update", "singlestep_dpm_solver_second_order_update",
        "singlestep_dpm_solver_third_order_update", "singlestep_dpm_solver_update", "multistep_uni_p_bh_update",
        "multistep_uni_c_bh_update", "get_lms_coefficient", "get_scalings_for_boundary_condition_discrete",
        "stretch_shift_to_terminal", "time_shift",
    ),
    "insides of configs": ("extract_init_dict", "get_config_dict", "register_for_auto_class", "from_config"),
}  # fmt: skip
"""The methods of diffusers' classes that raise the sentence of their kind."""
WORDS = (
    ("ControlNet", "ControlNet"), ("IPAdapter", "IP-Adapter"), ("T2IAdapter", "T2I-Adapter"),
    ("AdapterPipeline", "T2I-Adapter"), ("Quant", "quantised weights"), ("CacheConfig", "caches of layers"),
)  # fmt: skip
Class = TypeVar("Class", bound=type[Any])


class NotHere(Unsupported, ImportError):
    """A name of diffusers that is not there, an ImportError as people expect."""


def refuse(name: str, kind: str) -> NoReturn:
    raise Unsupported(f"{name} is not available: {INSTEAD[kind]}")


def missing(name: str, module: str = "enlarger.diffusers") -> Exception:
    """What reading a name from a module raises: a sentence for what may be a class of diffusers'."""
    kind = next((kind for word, kind in WORDS if word in name), None)
    if kind is None and name[:1].isupper() and not name.isupper():
        kind = "other classes"
    if kind is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return NotHere(f"{module} has no {name}: {INSTEAD[kind]}")


class Refusal:
    """A method that raises its kind's sentence when it is called, of an object or of the class."""

    def __init__(self, name: str, kind: str) -> None:
        self.__name__, self.kind = name, kind

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        refuse(self.__name__, self.kind)


def leaves_out(*kinds: str) -> Callable[[Class], Class]:
    """Give a class, for each method of these kinds that it does not have, one that raises the kind's sentence."""

    def decorate(decorated: Class) -> Class:
        for kind in kinds:
            for name in METHODS[kind]:
                if not hasattr(decorated, name):
                    setattr(decorated, name, Refusal(name, kind))
        return decorated

    return decorate
