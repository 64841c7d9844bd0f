"""Loading a single SDXL file beside diffusers and beside plain reading: seconds, and memory over the file's size.

    scripts/bench load_single_file [--folder FOLDER] [--repeat 3] [--small]

Writes a random float16 file in the original layout (6.9 GB; in a temporary folder, or kept in FOLDER), then loads it in
fresh processes, in turn, first with the page cache emptied of the file and then with the file in it. Prints a table
of medians. For Linux: memory comes from /proc, the cache is emptied by posix_fadvise.

Plain reading is two: through one small buffer, which is the disk's limit, and into new memory of the file's size, which
is the limit of every reader that does not map the file. One that maps it returns before it has read it, so the seconds
go on until every page of every weight was touched; what the touching took is in a row of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

PLAIN_READERS = ("buffer", "memory")
READERS = (*PLAIN_READERS, "diffusers", "enlarger")
STATES = ("cold", "warm")
REPOSITORY = "stable-diffusion-xl-base-1.0"
BLOCK = 1 << 24  # bytes read at a time by plain reading
PAGE = 4096


def main() -> None:
    """Parse the command line; `--reader` is how the program calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to keep the file; without it, it is deleted in the end")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the program itself")
    parser.add_argument("--reader", choices=READERS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(measure(arguments.reader, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="enlarger-benchmark-") as temporary:
        folder = arguments.folder or Path(temporary) / "sdxl"
        if not model_file(folder).is_file():
            (make_small if arguments.small else make)(folder)
        report(run_all(folder, arguments.repeat), model_file(folder).stat().st_size, arguments.repeat)


def model_file(folder: Path) -> Path:
    """The benchmark's single file."""
    return folder / "model.safetensors"


def config_folder(folder: Path) -> Path:
    """The JSON files that diffusers wants beside a single file when it may not ask the network."""
    return folder / "config"


def make(folder: Path) -> None:
    """SDXL base in full size. All weights are views of one random block, so that memory stays small."""
    import torch

    from enlarger.checkpoint.config.bundled_configs import family_configs
    from enlarger.checkpoint.single_file.reference_shapes import original_family_shapes
    from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
    from tests.support.clip_files import tokenizer_folder

    shapes = original_family_shapes("sdxl")
    largest = max(prod(shape) for shape in shapes.values())
    block = torch.randn(largest, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for name, config in family_configs("sdxl").items():
        kind = "scheduler_config" if name == "scheduler" else "config"
        path = config_folder(folder) / ("model_index.json" if name == "model_index" else f"{name}/{kind}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer_folder(config_folder(folder) / part, REPOSITORY, part)
    views = {name: block[: prod(shape)].view(shape) for name, shape in shapes.items()}
    save_safetensors(model_file(folder), views)


def make_small(folder: Path) -> None:
    """The same of the tests' tiny model."""
    import torch

    from enlarger.checkpoint.folder.load import read_folder
    from enlarger.checkpoint.folder.save import save_folder
    from enlarger.checkpoint.single_file.save import save_single_file
    from tests.support.tiny_xl import base_folder

    bundle = read_folder(base_folder())
    save_folder(bundle, config_folder(folder), torch.float16)
    save_single_file(bundle, model_file(folder), torch.float16)


def run_all(folder: Path, repeat: int) -> dict[tuple[str, str], list[dict]]:
    """What each reader took, in both states of the page cache."""
    results: dict[tuple[str, str], list[dict]] = {}
    for _ in range(repeat):
        for state in STATES:
            for reader in READERS:
                (empty_cache if state == "cold" else read_plainly)(model_file(folder))
                results.setdefault((reader, state), []).append(call(reader, folder))
                print(f"{reader}, {state}: {results[reader, state][-1]}", file=sys.stderr, flush=True)
    return results


def empty_cache(path: Path) -> None:
    """Ask the kernel to forget what it holds of a file; dirty pages stay, so they are written first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def call(reader: str, folder: Path) -> dict:
    """One reader in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_single_file", "--folder", str(folder), "--reader", reader],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"{reader} failed ({done.returncode}):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(reader: str, folder: Path) -> dict:
    """Load, then touch every page; bytes over those that the process held and had read before."""
    load = prepare(reader, folder)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before, mapped, read = process_memory("VmRSS"), process_memory("RssFile"), disk_bytes_read()
    started, worked = time.perf_counter(), time.process_time()
    parts = load()
    loaded = time.perf_counter()
    checksum = touch(parts)
    done = time.perf_counter()
    return {
        "seconds": done - started,
        "touching": done - loaded,
        "working": time.process_time() - worked,
        "peak": process_memory("VmHWM") - before,
        "mapped": process_memory("RssFile") - mapped,
        "disk": disk_bytes_read() - read,
        "checksum": checksum,
    }


def prepare(reader: str, folder: Path) -> Callable[[], dict[str, Any]]:
    """A function that loads the file and returns its parts; everything is imported already."""
    path = model_file(folder)
    if reader in PLAIN_READERS:
        return lambda: read_plainly(path, keep=reader == "memory")
    import torch

    if reader == "enlarger":
        from enlarger.checkpoint.single_file.load import read_single_file

        return lambda: dict(read_single_file(path).components)
    import diffusers

    kind = diffusers.StableDiffusionXLPipeline
    options = {"config": str(config_folder(folder)), "torch_dtype": torch.float16, "local_files_only": True}
    return lambda: kind.from_single_file(str(path), **options).components


def read_plainly(path: Path, keep: bool = False) -> dict[str, Any]:
    """Read a file from start to end, into one small buffer or into memory for all of it."""
    size = path.stat().st_size
    view = memoryview(bytearray(size if keep else BLOCK))  # a large one gets its pages when they are written
    with path.open("rb", buffering=0) as file:
        position = 0
        while position < size:
            start = position if keep else 0
            position += file.readinto(view[start : start + BLOCK])
    return {"read": view}


def touch(parts: dict[str, Any]) -> int:
    """Read an element of every page of every weight; their checksum, under names that both sides share."""
    checksum = 0
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        weights = parts[name].state_dict() if name in parts else {}
        for _, tensor in sorted((key.removeprefix("text_model."), value) for key, value in weights.items()):
            some = tensor.reshape(-1)[:: PAGE // tensor.element_size()]
            checksum = zlib.crc32(some.numpy().tobytes(), checksum)
    return checksum


def process_memory(kind: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most, RssFile of it pages of files."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) * 1024


def disk_bytes_read() -> int:
    """Bytes that this process had fetched from the disk, not from the page cache."""
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def report(results: dict[tuple[str, str], list[dict]], size: int, repeat: int) -> None:
    """The medians and their ratios, as a Markdown table."""
    import diffusers
    import torch

    def median(reader: str, state: str, key: str) -> float:
        return statistics.median(each[key] for each in results[reader, state])

    sums = {each["checksum"] for (reader, _), runs in results.items() if reader not in PLAIN_READERS for each in runs}
    print(
        f"SDXL base in one float16 file of {size / 1e9:.2f} GB, {processor()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}; medians of {repeat}; "
        f"the weights are {'equal' if len(sums) == 1 else 'DIFFERENT'}\n"
    )
    print("| | plain reading | plain, into new memory | diffusers | enlarger | ratios of enlarger to these three |")
    print("| --- | --- | --- | --- | --- | --- |")
    for state in STATES:
        for key, name, unit in (
            ("seconds", "loading", 1), ("touching", "of it touching", 1), ("working", "processor time", 1),
            ("peak", "peak memory / file", size), ("disk", "from the disk / file", size),
            ("mapped", "in the end mapped / file", size),
        ):  # fmt: skip
            values = [median(reader, state, key) / unit for reader in READERS]
            cells = [f"{value:.2f} s" if unit == 1 else f"{value:.3f}" for value in values]
            ratios = ", ".join(f"{values[-1] / other:.2f}" for other in values[:-1]) if key == "seconds" else ""
            print(f"| {name}, {state} | {' | '.join(cells)} | {ratios} |")


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
