"""`enlarger doctor`: what is installed, what it can compute with, and whether the pulled models are complete."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger import __version__
from enlarger.cli.options import JsonLines
from enlarger.cli.terminal import print_lines
from enlarger.errors import CheckpointError, EnlargerError
from enlarger.strict_json import Json

if TYPE_CHECKING:
    import torch

EXTRA_PACKAGES = {  # those that each brings
    "depth": ("transformers",),
    "safety": ("transformers",),
    "spandrel": ("spandrel", "torchvision"),
    "heif": ("pillow-heif",),
    "jxl": ("pillow-jxl-plugin",),
    "hub": ("huggingface_hub", "filelock"),
    "train": ("accelerate",),
    "openvino": ("openvino", "nncf"),
    "ray": ("ray", "pyarrow"),
}


def doctor(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="folders that were pulled with --to")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read every byte; without it only sizes are checked")
    ] = False,
    json_lines: JsonLines = False,
) -> None:
    """Show what is installed, which devices and number formats work, how networks run and why; check pulled models.

    Models in the cache of Hugging Face's libraries are listed too; they are used as they are, and never changed.

    A broken model is named with the command that repairs it. Exit status 1 if there is one.
    """
    report: Json = {"system": _system(), "devices": _devices(), "runtime": _runtime()}
    report |= {"extras": _extras(), "cache": _cache()}
    report["models"] = list(_models(folders or (), verify))
    report["huggingface"] = list(_huggingface_models())
    print_lines([json.dumps(report)] if json_lines else _format_lines(report))
    if any(model["broken"] for model in report["models"]):
        raise typer.Exit(1)


def _system() -> dict[str, str]:
    import platform

    import torch

    built = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    kind = ", ".join(f"{name} {number}" for name, number in built.items() if number) or "CPU only"
    return {
        "enlarger": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__} ({kind}), {torch.get_num_threads()} threads",
    }


def _devices() -> dict[str, str]:
    """The devices, and the number formats in which a product of matrices works on each."""
    import torch

    from enlarger.runtime.choices import DTYPES

    names = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    names += ["xpu"] if torch.xpu.is_available() else []
    formats_by_device: dict[str, str] = {}
    for name in names:
        working_formats = [precision for precision, dtype in DTYPES.items() if _supports_matmul(name, dtype)]
        device_name = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
        formats_by_device[name + device_name] = ", ".join(working_formats) or "does not compute"
    return formats_by_device


def _runtime() -> dict[str, str]:
    """How networks run if nothing is asked for, and why."""
    from enlarger.runtime.choices import choose

    return choose().describe()


def _supports_matmul(device: str, dtype: "torch.dtype") -> bool:
    import torch

    try:
        ones = torch.ones(2, 2, device=device, dtype=dtype)
        return bool((ones @ ones).sum().item() == 8)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


def _extras() -> dict[str, str]:
    """Whether the packages of each extra are there."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    versions: dict[str, str] = {}
    for extra, packages in EXTRA_PACKAGES.items():
        try:
            versions[extra] = ", ".join(f"{package} {version(package)}" for package in packages)
        except PackageNotFoundError:
            versions[extra] = f"not installed: pip install 'enlarger[{extra}]'"
    return versions


def _cache() -> Json:
    import shutil

    from enlarger.hub.cache import PARTIAL_DIR, cache_dir

    folder = cache_dir()
    existing_parent = next(path for path in (folder, *folder.parents) if path.exists())
    unfinished = sum(path.stat().st_size for path in folder.glob(f"models/*/{PARTIAL_DIR}/*.part"))
    return {"folder": str(folder), "free": shutil.disk_usage(existing_parent).free, "unfinished": unfinished}


def _models(folders: "list[Path] | tuple[Path, ...]", verify: bool) -> Iterator[Json]:
    """All models in the cache and in `folders`."""
    from enlarger.hub.cache import RECORD_FILE, cache_dir

    for path in [*sorted(cache_dir().glob(f"models/*/*/{RECORD_FILE}")), *(folder / RECORD_FILE for folder in folders)]:
        try:
            yield _model(path.parent.absolute(), verify)
        except EnlargerError as error:
            yield {"folder": str(path.parent), "broken": {RECORD_FILE: str(error)}, "notes": [], "repair": None}


def _model(folder: Path, verify: bool) -> Json:
    from enlarger.hub.aliases import read_alias_table
    from enlarger.hub.cache import cache_dir, read_snapshot, repair_command

    snapshot = read_snapshot(folder)
    if snapshot is None:
        raise CheckpointError(f"{folder}: no record of a pull; give a folder that was made by enlarger pull --to.")
    alias = read_alias_table(cache_dir()).alias_of(snapshot.repository)
    published = {} if alias is None else {path: alias.sha256[path] for path in snapshot.files if path in alias.sha256}
    differing = [path for path, sha256 in published.items() if snapshot.files[path].sha256 != sha256]
    damaged = snapshot.damaged_files() if verify else dict.fromkeys(snapshot.missing_files(), "missing or cut short")
    return {
        "repository": snapshot.repository,
        "alias": None if alias is None else alias.name,
        "revision": snapshot.revision,
        "folder": str(snapshot.folder),
        "files": len(snapshot.files),
        "bytes": sum(remote.size for remote in snapshot.files.values()),
        "checked": "every byte" if verify else "sizes",
        "published": len(published) - len(differing),  # weight files whose sha256 is that of the published file
        "broken": damaged,
        "notes": [f"{path}: recorded sha256 is not the published file's" for path in differing],
        "repair": repair_command(snapshot) if damaged else None,
    }


def _huggingface_models() -> Iterator[Json]:
    """The models in the cache of Hugging Face's libraries that are in diffusers' layout or have an alias."""
    from enlarger.hub.aliases import read_alias_table
    from enlarger.hub.cache import cache_dir
    from enlarger.hub.huggingface_cache import huggingface_snapshots

    alias_table = read_alias_table(cache_dir())
    for snapshot in huggingface_snapshots():
        alias, files = alias_table.alias_of(snapshot.repository), snapshot.files()
        if alias is not None or "model_index.json" in files:
            yield {
                "repository": snapshot.repository,
                "alias": None if alias is None else alias.name,
                "revision": snapshot.revision,
                "folder": str(snapshot.folder),
                "files": len(files),
                "bytes": snapshot.size(),
                "missing": snapshot.missing_files(),
            }


def _format_lines(report: Json) -> Iterator[str]:
    """The findings as text."""
    cache = report["cache"]
    yield from (f"{name}: {about}" for name, about in report["system"].items())
    yield from (f"device {name}: {about}" for name, about in report["devices"].items())
    yield from (f"auto {name}: {about}" for name, about in report["runtime"].items())
    yield from (f"extra {name}: {about}" for name, about in report["extras"].items())
    yield f"cache: {cache['folder']}, {cache['free']:,} bytes free"
    if cache["unfinished"]:
        yield f"cache: {cache['unfinished']:,} bytes of unfinished downloads; pull the model again to go on"
    if not report["models"]:
        yield "models: none pulled"
    for model in report["models"]:
        yield from _format_model(model)
    for model in report["huggingface"]:
        yield f"Hugging Face cache: {_format_summary(model)}: {model['folder']}"
        yield from (f"  missing: {path}" for path in model["missing"])


def _format_summary(model: Json) -> str:
    alias = f" ({model['alias']})" if model["alias"] else ""
    return f"{model['repository']}{alias}: {model['files']} files, {model['bytes']:,} bytes"


def _format_model(model: Json) -> Iterator[str]:
    if "repository" in model:
        state = f"{len(model['broken'])} broken" if model["broken"] else "whole"
        checks = f"{model['checked']} checked, {model['published']} known as published"
        yield f"{_format_summary(model)}, {state} ({checks}): {model['folder']}"
    yield from (f"  broken: {path}: {reason}" for path, reason in model["broken"].items())
    yield from (f"  note: {note}" for note in model["notes"])
    if model["repair"]:
        yield f"  repair: {model['repair']}"
