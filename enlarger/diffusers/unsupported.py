"""What is left out, and what to do instead: each name of diffusers' raises one sentence."""

from collections.abc import Mapping
from typing import Any, NoReturn

from enlarger.errors import Unsupported

INSTEAD: Mapping[str, str] = {
    "IP-Adapter": "there are no IP adapters; LoRA and textual inversion are here",
    "ControlNet": "there are no ControlNets; the depth pipeline keeps a picture's layout, image-to-image its colours",
    "T2I-Adapter": "there are no T2I adapters; the depth pipeline keeps a picture's layout",
    "push_to_hub": "save to a folder and use huggingface_hub's upload_folder",
    "caches of layers": "none is kept between steps; use fewer steps, LCM or TCD",
    "layerwise casting": "weights are kept in the type they compute in; use torch_dtype=torch.float16, or an offload",
    "other pipelines": "import it from diffusers, or use one of enlarger.diffusers.__all__",
}
WORDS = (("ControlNet", "ControlNet"), ("IPAdapter", "IP-Adapter"), ("T2IAdapter", "T2I-Adapter"))


class NotHere(Unsupported, ImportError):
    """A name of diffusers that is not there, an ImportError as people expect."""


def refuse(name: str, kind: str) -> NoReturn:
    raise Unsupported(f"{name} is not available: {INSTEAD[kind]}")


def missing(name: str) -> Exception:
    """What reading a name from the module raises."""
    kind = next((kind for word, kind in WORDS if word in name), None)
    if kind is None and name.endswith(("Pipeline", "Scheduler", "Model")) and not name.startswith("_"):
        kind = "other pipelines"
    if kind is None:
        return AttributeError(f"module 'enlarger.diffusers' has no attribute {name!r}")
    return NotHere(f"enlarger.diffusers has no {name}: {INSTEAD[kind]}")


class LeftOutMethods:
    """For the pipelines to inherit."""

    def load_ip_adapter(self, *args: object, **kwargs: Any) -> NoReturn:
        """Not here."""
        refuse("load_ip_adapter", "IP-Adapter")

    def set_ip_adapter_scale(self, scale: object) -> NoReturn:
        """Not here."""
        refuse("set_ip_adapter_scale", "IP-Adapter")

    def unload_ip_adapter(self) -> None:
        """There is none to unload."""

    def push_to_hub(self, *args: object, **kwargs: Any) -> NoReturn:
        """Not here."""
        refuse("push_to_hub", "push_to_hub")

    def enable_cache(self, *args: object, **kwargs: Any) -> NoReturn:
        """Not here."""
        refuse("enable_cache", "caches of layers")
