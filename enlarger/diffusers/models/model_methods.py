"""What the models have beside their computing: counts, attention, checkpointing, and names that change nothing."""

import logging
from typing import Any

from torch import nn

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.schedulers.config import ConfigMethods
from enlarger.diffusers.unsupported import leaves_out
from enlarger.errors import Unsupported
from enlarger.nn import fused_attention

log = logging.getLogger(__name__)
OWN_ATTENTION = ("native", "_native_flash", "_native_efficient", "_native_math", "_native_cudnn")
STATED = "_stated_config"  # what a file stated, kept in the state that a view shares
LEFT_OUT = (
    "push_to_hub", "layerwise casting", "adapters of one network", "offload of one network", "other attention",
    "quantised weights", "pieces of a network", "insides of configs",
)  # fmt: skip


@leaves_out(*LEFT_OUT)
class ModelMethods(ConfigMethods):
    """For the models to inherit, beside `nn.Module`."""

    config_name = "config.json"
    native: Any
    parameters: Any
    buffers: Any
    named_modules: Any

    def register_to_config(self, **changes: object) -> None:
        """Change what the config says; the network stays as it is."""
        self.__dict__[STATED] = {**self.__dict__.get(STATED, {}), **changes}

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many weights there are, without those of tables of embeddings where they are excluded."""
        modules: list[nn.Module] = [part for _, part in self.named_modules()]
        tables = {id(part.weight) for part in modules if isinstance(part, nn.Embedding)} if exclude_embeddings else ()
        counted = [p for p in self.parameters() if id(p) not in tables and (p.requires_grad or not only_trainable)]
        return sum(p.numel() for p in counted)

    def enable_xformers_memory_efficient_attention(self, attention_op: object = None) -> None:
        """Changes nothing: torch's memory-efficient attention is always on."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """xformers is never used."""

    def set_attention_slice(self, slice_size: object = "auto") -> None:
        """Changes nothing: attention is computed memory-efficiently in any case."""

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: object = None) -> None:
        """Changes nothing, as `enable_xformers_memory_efficient_attention`."""

    def set_attention_backend(self, backend: str) -> None:
        """Takes the names of torch's own attention, which is the one there is; Unsupported for others."""
        if backend not in OWN_ATTENTION:
            raise Unsupported(f"the attention {backend!r} is not here: attention is torch's own; use 'native'")

    def reset_attention_backend(self) -> None:
        """It is always torch's own."""

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of the buffers unless told not to."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(each.numel() * each.element_size() for each in held)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: object = None) -> None:
        """Changes nothing, and says so: gradients are kept whole. Training with less memory is `enlarger train`'s."""
        log.warning("gradient checkpointing changes nothing here; `enlarger train` trains with less memory")

    def disable_gradient_checkpointing(self) -> None:
        """There is none."""

    @property
    def is_gradient_checkpointing(self) -> bool:
        return False

    def set_attn_processor(self, processor: object) -> None:
        """Attention is torch's own; processors that compute the same are taken and change nothing."""
        processors: list[Any] = [*processor.values()] if isinstance(processor, dict) else [processor]  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType, reportUnknownVariableType] - anything
        names = {type(one).__name__ for one in processors}
        if strange := {name for name in names if not name.startswith(("AttnProcessor", "XFormers", "Sliced", "Fused"))}:
            raise Unsupported(f"attention cannot be replaced by {', '.join(strange)}; subclass the network instead")

    def set_default_attn_processor(self) -> None:
        """It is always the default."""

    @property
    def attn_processors(self) -> dict[str, Any]:
        """The attention layers by name."""
        layers: list[tuple[str, nn.Module]] = list(self.named_modules())  # pyright: ignore[reportUnknownArgumentType] - torch
        return {f"{name}.processor": part for name, part in layers if hasattr(part, "to_q")}

    def fuse_qkv_projections(self) -> None:
        """One product for query, key and value of each self-attention, and one for key and value of the others."""
        fused_attention.fuse(self.native)

    def unfuse_qkv_projections(self) -> None:
        """Undo `fuse_qkv_projections`."""
        fused_attention.unfuse(self.native)

    def compile_repeated_blocks(self, *args: object, **kwargs: object) -> None:
        """Compile the transformer blocks, which are alike, one by one; ArgumentError where there are none."""
        modules: list[nn.Module] = [part for _, part in self.named_modules()]
        repeated = [part for part in modules if type(part).__name__ in ("TransformerBlock", "KAttentionBlock")]
        if not repeated:
            raise ArgumentError(f"{type(self).__name__} has no repeated blocks; give it to torch.compile whole")
        for part in repeated:
            part.compile(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType] - torch
