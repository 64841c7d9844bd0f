"""LoRA files and names, for the pipelines that have adapters."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch.types import Device

from enlarger.diffusers.loaders.adapter_files import Layers, Metadata, WeightsSource, read_tensors, save_lora
from enlarger.diffusers.unsupported import leaves_out

log = logging.getLogger(__name__)
Prompts = TypeVar("Prompts", bound=str | list[str])


@leaves_out("inside of LoRA loading")
class LoraFiles:
    """For `LoraMethods` to inherit: what is of files, of names, and what changes nothing."""

    unet_name: ClassVar[str] = "unet"
    text_encoder_name: ClassVar[str] = "text_encoder"

    def enable_lora_hotswap(self, **kwargs: object) -> None:
        """Changes nothing: any adapter can be swapped, a compiled network is compiled anew."""

    @classmethod
    def save_lora_weights(
        cls, save_directory: str | Path, unet_lora_layers: Layers = None, text_encoder_lora_layers: Layers = None,
        is_main_process: bool = True, weight_name: str | None = None, save_function: object = None,
        safe_serialization: bool = True, unet_lora_adapter_metadata: Metadata = None,
        text_encoder_lora_adapter_metadata: Metadata = None,
    ) -> None:  # fmt: skip
        """Write the layers of a LoRA, tensors by name or modules, as a file that `load_lora_weights` reads."""
        layers = {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers}
        metadata = {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata}
        if is_main_process:
            save_lora(Path(save_directory), weight_name, layers, metadata, safe_serialization and save_function is None)

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: WeightsSource, return_lora_metadata: bool = False, **kwargs: Any
    ) -> tuple[Any, ...]:
        """The tensors of a LoRA as its source names them, which `load_lora_weights` takes too, and None.

        The None stands for alphas beside the tensors: here they are among them. With `return_lora_metadata` what PEFT
        stated follows. `kwargs` are as for `load_lora_weights`.
        """
        options = {name: value for name, value in kwargs.items() if name != "unet_config"}
        tensors, stated = read_tensors(pretrained_model_name_or_path_or_dict, options)
        return (tensors, None, stated) if return_lora_metadata else (tensors, None)

    def set_lora_device(self, adapter_names: Sequence[str], device: Device) -> None:
        """Changes nothing: adapters stay where they were read, weights with them where the pipeline is."""

    def maybe_convert_prompt(self, prompt: Prompts, tokenizer: object = None) -> Prompts:
        """The prompt as it is: the tokenizer itself reads a token of several vectors as all of them."""
        return prompt
