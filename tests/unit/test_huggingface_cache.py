"""Models that Hugging Face's libraries fetched before are found where they lie, and stay as they are."""

import json
import os
import sys
from pathlib import Path

import pytest

from enlarger.checkpoint.folder.load import read_folder
from enlarger.cli.main import run
from enlarger.errors import CheckpointError
from enlarger.hub.cache import resolve, snapshot_variant
from enlarger.hub.huggingface_cache import huggingface_cache_dir, huggingface_snapshots
from tests.support.tiny_models import x2_folder

OLD, NEW, PINNED = "a" * 40, "b" * 40, "462165984030d82259a11f4367a4eed129e94a7b"  # the last is that of the alias sdxl
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("ENLARGER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("socket.socket", None)
    return tmp_path / "hf" / "hub"


def put(cache: Path, repository: str, commit: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
    """A snapshot as huggingface_hub lays it out: links to blobs."""
    repo = cache / f"models--{repository.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        blob, link = repo / "blobs" / f"{commit[:4]}-{path.replace('/', '-')}", snapshot / path
        blob.write_bytes(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    return snapshot


FILES = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"12345"}


def state(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths]


def test_a_model_loads_by_its_name_and_nothing_is_changed(cache: Path, tmp_path: Path) -> None:
    made = x2_folder(tmp_path / "made")
    files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    snapshot = put(cache, "some/upscaler", NEW, files)
    before = state(cache)
    assert resolve("some/upscaler") == snapshot
    assert set(read_folder(resolve("some/upscaler")).components) == set(read_folder(made).components)
    assert state(cache) == before and not (tmp_path / "home").exists()


def test_an_alias_takes_its_revision_then_main_then_the_newest(cache: Path) -> None:
    other = put(cache, SDXL, OLD, FILES, ref=None)
    os.utime(other, (1, 1))
    newest = put(cache, SDXL, NEW, FILES, ref=None)
    assert resolve("sdxl") == newest
    (cache / f"models--{SDXL.replace('/', '--')}" / "refs").mkdir()
    (cache / f"models--{SDXL.replace('/', '--')}" / "refs" / "main").write_text(OLD + "\n")
    assert resolve("sdxl") == other == resolve(SDXL)
    pinned = put(cache, SDXL, PINNED, FILES, ref=None)
    assert resolve("sdxl") == pinned and resolve(SDXL) == other


def test_mirrors_of_an_alias_are_found(cache: Path) -> None:
    snapshot = put(cache, "runwayml/stable-diffusion-v1-5", NEW, FILES)
    assert resolve("sd15") == snapshot


def test_what_was_pulled_comes_first(cache: Path, tmp_path: Path) -> None:
    from enlarger.hub.cache import LocalSnapshot, repo_folder

    put(cache, "owner/model", NEW, FILES)
    pulled = LocalSnapshot(repo_folder("owner/model") / OLD, "owner/model", OLD, "https://huggingface.co")
    pulled.save()
    assert resolve("owner/model") == pulled.folder


@pytest.mark.parametrize("files", [{"config.json": b"{}"}, {"model_index.json": b"{}", "unet/model.bin": b"1"}])
def test_snapshots_without_safetensors_are_no_models(cache: Path, files: dict[str, bytes]) -> None:
    put(cache, "owner/model", NEW, files)
    with pytest.raises(CheckpointError, match="fetch it once: enlarger pull owner/model"):
        resolve("owner/model")


def test_links_to_nothing_are_named(cache: Path) -> None:
    snapshot = put(cache, "owner/model", NEW, FILES)
    (snapshot / "unet/diffusion_pytorch_model.safetensors").resolve().unlink()
    with pytest.raises(CheckpointError) as caught:
        resolve("owner/model")
    assert str(caught.value) == (
        f"{snapshot}: found 1 links to files that are not there, unet/diffusion_pytorch_model.safetensors first; "
        "fetch the model: enlarger pull owner/model"
    )


def test_a_reference_that_is_no_commit_leads_nowhere(cache: Path) -> None:
    snapshot = put(cache, "owner/model", NEW, FILES)
    (cache / "models--owner--model" / "refs" / "main").write_text("../../../elsewhere")
    assert resolve("owner/model") == snapshot


def test_the_variant_is_that_of_the_weights(cache: Path) -> None:
    half = put(cache, "o/half", NEW, {"unet/diffusion_pytorch_model.fp16.safetensors": b""})
    assert snapshot_variant(half) == "fp16" and snapshot_variant(put(cache, "o/plain", NEW, FILES)) is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert huggingface_cache_dir() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "~/models")
    assert huggingface_cache_dir() == Path.home() / "models"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    assert huggingface_cache_dir() == Path.home() / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert huggingface_cache_dir() == tmp_path / "huggingface" / "hub"


def test_the_folders_are_those_of_huggingface_hub(cache: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    snapshot = put(cache, "owner/model", NEW, FILES)
    found = hub.snapshot_download("owner/model", cache_dir=cache, local_files_only=True)
    assert Path(found) == snapshot == resolve("owner/model")


def test_doctor_lists_them(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = put(cache, SDXL, PINNED, FILES)
    put(cache, "owner/language-model", NEW, {"model.safetensors": b""})
    second = put(cache, "owner/model", NEW, FILES)
    (second / "unet/diffusion_pytorch_model.safetensors").resolve().unlink()
    assert len([*huggingface_snapshots()]) == 3

    def doctor(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["enlarger", "doctor", *words])
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 0
        return capsys.readouterr().out

    out = doctor()
    assert f"\nHugging Face cache: {SDXL} (sdxl): 2 files, 7 bytes: {first}\n" in out and "language-model" not in out
    assert f": owner/model: 2 files, 2 bytes: {second}\n  missing: {[*FILES][1]}\n" in out
    assert [entry["alias"] for entry in json.loads(doctor("--json"))["huggingface"]] == [None, "sdxl"]
