"""`enlarger doctor`: what is installed, what it can compute with, and whether the pulled models are whole."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from enlarger import __version__
from enlarger.cli.options import JsonLines
from enlarger.errors import CheckpointError, EnlargerError

EXTRAS = {"depth": "transformers", "safety": "transformers", "hub": "huggingface_hub"}  # and a package that tells


def doctor(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="folders that were pulled with --to")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read every byte; without it only sizes are checked")
    ] = False,
    json_lines: JsonLines = False,
) -> None:
    """Tell what is installed and which devices and number formats work, and check every pulled model.

    A broken model is named with the command that repairs it. Exit status 1 if there is one.
    """
    found: dict[str, Any] = {"system": _system(), "devices": _devices(), "extras": _extras(), "cache": _cache()}
    found["models"] = list(_models(folders or (), verify))
    if json_lines:
        print(json.dumps(found))
    else:
        print("\n".join(_lines(found)))
    if any(model["broken"] for model in found["models"]):
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

    from enlarger.runtime.runtime import PRECISIONS

    names = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    names += ["xpu"] if torch.xpu.is_available() else []
    found: dict[str, str] = {}
    for name in names:
        works = [word for word, dtype in PRECISIONS.items() if _multiplies(name, dtype)]
        about = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
        found[name + about] = ", ".join(works) or "does not compute"
    return found


def _multiplies(device: str, dtype: Any) -> bool:
    import torch

    try:
        ones = torch.ones(2, 2, device=device, dtype=dtype)
        return bool((ones @ ones).sum().item() == 8)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


def _extras() -> dict[str, str]:
    """Whether the package of each extra is there."""
    found: dict[str, str] = {}
    for extra, package in EXTRAS.items():
        try:
            found[extra] = f"{package} {version(package)}"
        except PackageNotFoundError:
            found[extra] = f"not installed: pip install 'enlarger[{extra}]'"
    return found


def _cache() -> dict[str, Any]:
    import shutil

    from enlarger.hub.cache import PARTS, home

    folder = home()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    unfinished = sum(path.stat().st_size for path in folder.glob(f"models/*/{PARTS}/*.part"))
    return {"folder": str(folder), "free": shutil.disk_usage(there).free, "unfinished": unfinished}


def _models(folders: "list[Path] | tuple[Path, ...]", verify: bool) -> Iterator[dict[str, Any]]:
    """All models in the cache and in `folders`."""
    from enlarger.hub.cache import RECORD, home

    for path in [*sorted(home().glob(f"models/*/*/{RECORD}")), *(folder / RECORD for folder in folders)]:
        try:
            yield _model(path.parent.absolute(), verify)
        except EnlargerError as error:
            yield {"folder": str(path.parent), "broken": {RECORD: str(error)}, "notes": [], "repair": None}


def _model(folder: Path, verify: bool) -> dict[str, Any]:
    from enlarger.hub.cache import home, read_copy, repair_command
    from enlarger.hub.names import read_book

    copy = read_copy(folder)
    if copy is None:
        raise CheckpointError(f"{folder}: no record of a pull; give a folder that was made by enlarger pull --to.")
    alias = read_book(home()).owner(copy.repository)
    known = {} if alias is None else {path: alias.sha256[path] for path in copy.files if path in alias.sha256}
    differ = [path for path, sha256 in known.items() if copy.files[path].sha256 != sha256]
    broken = copy.broken() if verify else dict.fromkeys(copy.missing(), "missing or cut short")
    return {
        "repository": copy.repository,
        "alias": None if alias is None else alias.name,
        "revision": copy.revision,
        "folder": str(copy.folder),
        "files": len(copy.files),
        "bytes": sum(wanted.size for wanted in copy.files.values()),
        "checked": "every byte" if verify else "sizes",
        "published": len(known) - len(differ),  # weight files whose sha256 is that of the published file
        "broken": broken,
        "notes": [f"{path}: recorded sha256 is not the published file's" for path in differ],
        "repair": repair_command(copy) if broken else None,
    }


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """The findings as text."""
    cache = found["cache"]
    yield from (f"{name}: {about}" for name, about in found["system"].items())
    yield from (f"device {name}: {about}" for name, about in found["devices"].items())
    yield from (f"extra {name}: {about}" for name, about in found["extras"].items())
    yield f"cache: {cache['folder']}, {cache['free']:,} bytes free"
    if cache["unfinished"]:
        yield f"cache: {cache['unfinished']:,} bytes of unfinished downloads; pull the model again to go on"
    if not found["models"]:
        yield "models: none pulled"
    for model in found["models"]:
        yield from _about(model)


def _about(model: dict[str, Any]) -> Iterator[str]:
    where = model["folder"]
    if "repository" in model:
        alias = f" ({model['alias']})" if model["alias"] else ""
        about = f"{model['repository']}{alias}: {model['files']} files, {model['bytes']:,} bytes"
        state = f"{len(model['broken'])} broken" if model["broken"] else "whole"
        yield f"{about}, {state} ({model['checked']} checked, {model['published']} known as published): {where}"
    yield from (f"  broken: {path}: {why}" for path, why in model["broken"].items())
    yield from (f"  note: {note}" for note in model["notes"])
    if model["repair"]:
        yield f"  repair: {model['repair']}"
