"""LoRAs that a prompt names, `<lora:name:0.8>`, as AUTOMATIC1111 writes them; without torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from enlarger.errors import InputError
from enlarger.requests import MAX_LORA_SCALE

TAG_PATTERN = re.compile(r"<(lora|lyco|hypernet):([^<>:]*)((?::[^<>:]*)*)>", re.IGNORECASE)


@dataclass(frozen=True)
class LoraUse:
    """A LoRA by its name in a folder of models, or by its file, and how much of it each kind of network gets."""

    name: str | Path
    text_scale: float = 1.0
    unet_scale: float = 1.0


def split_lora_tags(prompt: str) -> tuple[str, tuple[LoraUse, ...]]:
    """A prompt without its tags, and what they name.

    `<lora:name>` is scale 1, `<lora:name:0.8>` that of all networks, `<lora:name:0.8:0.5>` that of the text encoders
    and that of the UNet. Raises InputError for a tag of another form, and for a hypernetwork.
    """
    uses = tuple(_parse_tag(match) for match in TAG_PATTERN.finditer(prompt))
    if not uses:
        return prompt, ()
    text = re.sub(r"[ \t]{2,}", " ", TAG_PATTERN.sub("", prompt)).strip(" \t,")
    return text, uses


def _parse_tag(match: re.Match[str]) -> LoraUse:
    tag, name, values = match[0], match[2].strip(), match[3].split(":")[1:]
    if match[1].lower() == "hypernet":
        raise InputError(f"the prompt has {tag}, but hypernetworks are not supported; leave it out")
    if not name or len(values) > 2:
        raise InputError(f"the prompt has {tag}, expected <lora:name:0.8>")
    return lora_use(name, *(_number(tag, value) for value in values))


def lora_use(name: str | Path, text_scale: float = 1.0, unet_scale: float | None = None) -> LoraUse:
    """A LoRA with one scale, or two. Raises InputError for one that is out of bounds."""
    scales = (text_scale, text_scale if unet_scale is None else unet_scale)
    for scale in scales:
        if not abs(scale) <= MAX_LORA_SCALE:
            raise InputError(
                f"the LoRA {name} has a scale of {scale:g}, expected {-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
            )
    return LoraUse(name, *scales)


def _number(tag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"the prompt has {tag}, expected a number as the scale: <lora:name:0.8>") from error
