"""A training step beside diffusers': the same folder, pictures, batch, optimiser and threads.

    scripts/bench train_step [--networks tiny wide] [--steps 12] [--batch 4] [--threads 2] [--repeat 3]

`tiny` is a UNet of two stages; `wide` has one stage as wide as SD1.5's (320 channels, text of 768). diffusers' side
is the arithmetic of its `train_text_to_image.py` on its own networks. Each side runs in processes of its own, in turn;
a figure is the median over runs of the median of their steps but for the first two.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import _harness
from benchmarks._side import peak

SIDES = ("diffusers", "enlarger")
WARM_UP = 2  # steps that are not counted
RATE = 1e-4
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"channels": (32, 64), "text": 32, "heads": 4, "resolution": 64},
    "wide": {"channels": (320,), "text": 768, "heads": 8, "resolution": 128},
}


def main() -> None:
    """Parse the command line; `--side-run` is how the program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "enlarger-benchmark-train")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    parser.add_argument("--side-run", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.side_run:
        print(json.dumps(run(arguments)))
        return
    rows = [row for name in arguments.networks for row in measure(name, arguments)]
    settings = {key: getattr(arguments, key) for key in ("steps", "batch", "repeat", "threads")}
    _harness.save("train_step", settings, rows, arguments.results)
    print("\n".join(_harness.table(rows)))


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides' medians for a network, and their ratios to diffusers'."""
    prepare(arguments.folder, name)
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeat):
        for side in SIDES:
            results[side].append(call(side, name, arguments))
            print(f"{side}, {name}: {json.dumps(results[side][-1])}", file=sys.stderr, flush=True)
    medians = {
        side: {key: statistics.median(each[key] for each in taken) for key in ("run", "peak")}
        for side, taken in results.items()
    }
    base = medians[SIDES[0]]
    return [
        {"name": f"{side}, {name}", **found, "ratios": {key: found[key] / base[key] for key in found}}
        for side, found in medians.items()
    ]


def prepare(folder: Path, name: str) -> None:
    """A model with random weights and forty captioned pictures, made once."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from tests.support.clip_files import tokenizer_folder

    model, pictures, sizes = folder / name, folder / f"{name}-pictures", NETWORKS[name]
    if (model / "model_index.json").is_file():
        return
    torch.manual_seed(0)
    channels, deep = sizes["channels"], len(sizes["channels"]) > 1
    with tempfile.TemporaryDirectory() as place:
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(Path(place) / "tokenizer", "stable-diffusion-v1-5"))
    text = CLIPTextConfig(hidden_size=sizes["text"], intermediate_size=4 * sizes["text"], num_hidden_layers=1)
    text.num_attention_heads = sizes["heads"]
    unet = UNet2DConditionModel(
        sample_size=sizes["resolution"] // 2,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D") if deep else ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if deep else ("CrossAttnUpBlock2D",),
        layers_per_block=2,
        cross_attention_dim=sizes["text"],
        attention_head_dim=sizes["heads"],
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(model)
    pictures.mkdir(parents=True, exist_ok=True)
    for i in range(40):
        values = torch.randint(0, 256, (sizes["resolution"], sizes["resolution"], 3), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(pictures / f"{i:02d}.png")
        (pictures / f"{i:02d}.txt").write_text(f"picture number {i} of forty")


def call(side: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One side in a process of its own."""
    options = ["--folder", arguments.folder, "--networks", name, "--steps", arguments.steps, "--batch", arguments.batch]
    options += ["--threads", arguments.threads, "--side-run", side]
    return _harness.call([sys.executable, "-m", "benchmarks.train_step", *map(str, options)], arguments.threads)


def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, and the process's memory at its most, in MiB."""
    import torch

    torch.set_num_threads(arguments.threads)
    name = arguments.networks[0]
    model, pictures = arguments.folder / name, arguments.folder / f"{name}-pictures"
    steps = theirs if arguments.side_run == "diffusers" else ours
    stamps = list(steps(model, pictures, NETWORKS[name]["resolution"], arguments))
    seconds = [after - before for before, after in pairwise(stamps)]
    return {"run": statistics.median(seconds[WARM_UP - 1 :]), "peak": peak()}


def ours(model: Path, pictures: Path, resolution: int, arguments: argparse.Namespace) -> Iterator[float]:
    """When each of our steps was done."""
    from enlarger.train.options import DataSettings, LossOptions, TrainOptions
    from enlarger.train.run import TrainingProgress, train

    stamps: list[float] = []

    def watch(progress: TrainingProgress) -> None:
        stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as place:
        options = TrainOptions(
            "text-to-image", model, pictures, Path(place) / "out", arguments.steps, arguments.batch, RATE, resolution,
            warmup=0, device="cpu", save_every=1e9, loss=LossOptions(text_dropout=0.0),
            data_settings=DataSettings(buckets=False, center_crop=True),
        )  # fmt: skip
        train(options, watch)
    return iter(stamps)


def theirs(model: Path, pictures: Path, resolution: int, arguments: argparse.Namespace) -> Iterator[float]:
    """When each step of the arithmetic of diffusers' trainer was done."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from PIL import Image

    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    vae, text_encoder, unet = pipe.vae.requires_grad_(False), pipe.text_encoder.requires_grad_(False), pipe.unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.01)

    def row(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(path).convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR)
        caption = path.with_suffix(".txt").read_text()
        ids = pipe.tokenizer(
            caption, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1, ids[0]

    paths = sorted(pictures.glob("*.png"))
    loader = torch.utils.data.DataLoader([*map(str, paths)], batch_size=arguments.batch, shuffle=True)  # type: ignore[arg-type]
    done = 0
    while done < arguments.steps:
        for names in loader:
            pixels, ids = (torch.stack(part) for part in zip(*(row(Path(name)) for name in names), strict=True))
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                states = text_encoder(ids, return_dict=False)[0]
            noise = torch.randn_like(latents)
            times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
            output = unet(scheduler.add_noise(latents, noise, times), times, states, return_dict=False)[0]
            loss = F.mse_loss(output, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            yield time.perf_counter()
            done += 1
            if done == arguments.steps:
                return


if __name__ == "__main__":
    main()
