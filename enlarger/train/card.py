"""The model card of a training: what it began from, what it saw, how it learned, and how to use its result."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enlarger.train.options import DataSettings, TrainOptions

USES = {
    "text-to-image": 'enlarger generate "a prompt" --model {out}',
    "lora": 'enlarger generate "a prompt" --model BASE --lora {out}',
    "inpainting": 'enlarger inpaint photo.png --mask mask.png --prompt "a prompt" --model {out}',
    "depth": 'enlarger depth photo.png --prompt "a prompt" --model {out}',
    "upscaler-x4": "enlarger upscale photo.png --model {out}",
    "upscaler-x2": "enlarger upscale photo.png --model {out}",
}
TITLES = {
    "text-to-image": "A text-to-image model",
    "lora": "A LoRA",
    "inpainting": "An inpainting model",
    "depth": "A depth-to-image model",
    "upscaler-x4": "An x4 upscaler",
    "upscaler-x2": "An x2 latent upscaler",
}


@dataclass(frozen=True)
class Figures:
    """What a card says of a run: pictures, how many were left out, processes, and the loss over the last steps."""

    pictures: int
    skipped: int
    processes: int
    loss: float | None  # None: no step was left to do
    prediction: str
    hardware: str
    max_noise_level: float | None = None  # of an upscaler's input


def card(options: TrainOptions, figures: Figures) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    base, data = Path(options.model).name, Path(options.data).name
    tags = ["lora"] if options.task == "lora" else []
    head = {"library_name": "diffusers", "base_model": base, "tags": ["diffusers", "enlarger", options.task, *tags]}
    front = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items())
    left_out = f"; {figures.skipped} could not be read and were left out" if figures.skipped else ""
    batch = options.batch * options.accumulate * figures.processes
    table = "\n".join(f"| {name} | {value} |" for name, value in _settings(options, figures).items())
    loss = "" if figures.loss is None else f"\n\nThe mean loss over the last steps was {figures.loss:.4g}."
    told = "" if options.task.startswith("upscaler") else " with captions"  # an upscaler's may have none
    return (
        f"---\n{front}\n---\n\n# {TITLES[options.task]} from {base}\n\n"
        f"Trained with enlarger for {options.steps:,} steps of {batch} pictures, from {base}.\n\n"
        f"## Data\n\n{figures.pictures:,} pictures{told} from `{data}`{left_out}.\n\n"
        f"## Training\n\n| setting | value |\n|---|---|\n{table}{loss}\n\n"
        f"## Use\n\n```bash\n{USES[options.task].format(out=options.out.name)}\n```\n"
    )


def _settings(options: TrainOptions, figures: Figures) -> Mapping[str, object]:
    loss, lora = options.loss, options.lora
    stated: dict[str, object] = {
        "objective": figures.prediction,
        "optimizer": f"AdamW, weight decay {options.weight_decay:g}",
        "rate": f"warm-up over {options.warmup} steps to {options.rate:g}, then constant",
        "batch": f"{options.batch} x {options.accumulate} accumulated x {figures.processes} processes",
        "resolution": options.resolution,
        "pictures": _cuts(options.data_settings),
        "precision": options.precision,
        "averaged weights": "none" if options.average is None else f"decay {options.average:g}",
        "captions left out": f"{loss.text_dropout:.0%}",
        "seed": options.seed,
        "hardware": figures.hardware,
    }
    optional = {
        "offset noise": loss.offset_noise or None,
        "min-SNR gamma": loss.snr_gamma,
        "zero-terminal SNR": "yes" if loss.zero_terminal_snr else None,
        "most noise on the input": figures.max_noise_level,
        "LoRA": f"rank {lora.rank}, alpha {lora.scale * lora.rank:g}, {', '.join(lora.targets)}"
        if options.task == "lora"
        else None,
    }
    return stated | {name: value for name, value in optional.items() if value is not None}


def _cuts(data: DataSettings) -> str:
    """How pictures are cut."""
    shapes = "sizes near to their shapes" if data.buckets else "squares"
    place, mirrored = "the middle" if data.center_crop else "anywhere", ", half of them mirrored"
    return f"cut to {shapes}, from {place}{mirrored if data.random_flip else ''}"
