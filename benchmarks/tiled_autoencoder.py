"""The autoencoder in exact tiles: equality with the whole, and memory beside diffusers' approximate tiles.

    scripts/bench tiled_autoencoder [--cases 200] [--sides 1024 2048 4096 8192] [--widths narrow] [--official]

First `--cases` random pictures, tiles and tiny architectures, encoded and decoded both ways. Then a table: random
weights of four levels with 16 channels, or with `--widths official` those of Stable Diffusion, decoded to squares of
the given sides in a process of its own each, with the largest difference to the untiled result where that fits.
`--official` decodes and encodes 512 pixels with the official widths instead.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks._side import peak

METHODS = ("whole", "exact tiles", "diffusers' tiles")
WIDTHS = {"narrow": ((16,) * 4, 1, 8), "official": ((128, 256, 512, 512), 2, 32)}  # channels, layers, groups
WHOLE_UP_TO = {"narrow": 4096, "official": 1024}  # pixels along a side


def main() -> None:
    """Parse the command line; `--decode` is how the program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--sides", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--widths", choices=tuple(WIDTHS), default="narrow")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--official", action="store_true")
    parser.add_argument("--decode", nargs=3, metavar=("METHOD", "SIDE", "WIDTHS"))
    arguments = parser.parse_args()
    if arguments.decode:
        print(json.dumps(decode(arguments.decode[0], int(arguments.decode[1]), arguments.decode[2])))
        return
    if arguments.official:
        official()
        return
    cases(arguments.cases)
    table(arguments.sides, arguments.widths, arguments.methods)


def cases(count: int) -> None:
    """The largest difference of so many random cases; a case over 1e-4 raises."""
    from tests.unit.test_tiled_autoencoder import check_case

    if count:
        print(f"{count} random cases: largest difference {max(map(check_case, range(count))):.2g}\n")


def official() -> None:
    """Both directions of the official architecture at 512 pixels."""
    import torch

    from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
    from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_tiled, encode_tiled
    from tests.support.random_weights import normal, randomise

    autoencoder = randomise(AutoencoderKL(AutoencoderConfig((128, 256, 512, 512), 2, 4, 0.18215)))
    image = normal(1, 3, 512, 512).clamp(-1, 1)
    with torch.inference_mode():
        mean = autoencoder.encode(image).mean
        print(f"encode: {(encode_tiled(autoencoder, image).mean - mean).abs().max():.2g} of {mean.abs().max():.2g}")
        whole, started = autoencoder.decode(mean), time.perf_counter()
        difference = (decode_tiled(autoencoder, mean) - whole).abs().max()
        print(f"decode: {difference:.2g} of {whole.abs().max():.2g}, {time.perf_counter() - started:.0f} s in tiles")


def table(sides: list[int], widths: str, methods: Sequence[str]) -> None:
    """Peak memory and error by method and side."""
    print("| side | method | working memory, MiB | seconds | largest difference to the whole |")
    print("| --- | --- | --- | --- | --- |")
    for side in sides:
        sample: dict[str, Any] | None = None
        for method in (method for method in methods if method != "whole" or side <= WHOLE_UP_TO[widths]):
            found = call(method, side, widths)
            sample = found if method == "whole" else sample
            error = "not run" if sample is None else f"{difference(found, sample):.2g}"
            print(f"| {side} | {method} | {found['memory']:.0f} | {found['seconds']:.0f} | {error} |", flush=True)


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of every 61st pixel."""
    return max(abs(a - b) for a, b in zip(found["pixels"], expected["pixels"], strict=True))


def call(method: str, side: int, widths: str) -> dict[str, Any]:
    """One decoding in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tiled_autoencoder", "--decode", method, str(side), widths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def decode(method: str, side: int, widths: str) -> dict[str, Any]:
    """The memory beyond the decoded picture, the time, and a sample of the pixels."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as Theirs

    from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
    from enlarger.tasks.latent_diffusion.tiled_autoencoder import decode_tiled
    from tests.support.random_weights import normal, randomise

    channels, layers, groups = WIDTHS[widths]
    ours = randomise(AutoencoderKL(AutoencoderConfig(channels, layers, 4, 1.0, groups=groups)))
    theirs = Theirs(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels, layers_per_block=layers, latent_channels=4, norm_num_groups=groups,
        scaling_factor=1.0,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    theirs.enable_tiling()
    latents = normal(1, 4, side // 8, side // 8)
    before, started = peak(), time.perf_counter()
    with torch.inference_mode():
        if method == "whole":
            picture = ours.decode(latents)
        elif method == "exact tiles":
            picture = decode_tiled(ours, latents)
        else:
            picture = theirs.decode(latents).sample
    return {
        "memory": peak() - before - picture.nbytes / 2**20,
        "seconds": time.perf_counter() - started,
        "pixels": picture[0, :, ::61, ::61].flatten().tolist(),
    }


if __name__ == "__main__":
    main()
