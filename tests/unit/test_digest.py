"""A file is read once for its digest as long as it is as it was."""

import hashlib
import os
from pathlib import Path

import pytest

from enlarger.cli.resume import fingerprint_of_run
from enlarger.image import digest
from enlarger.image.digest import file_sha256
from enlarger.requests import UpscaleRequest
from enlarger.tasks.results.generation import _describe


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    real = hashlib.file_digest

    def counted(stream: object, name: str) -> object:
        found.append(Path(stream.name).name)  # pyright: ignore[reportAttributeAccessIssue]
        return real(stream, name)  # pyright: ignore[reportArgumentType]

    digest._file_sha256.cache_clear()
    monkeypatch.setattr(hashlib, "file_digest", counted)
    return found


def test_plan_save_and_metadata_read_an_input_once(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    fingerprint = fingerprint_of_run(UpscaleRequest(None))
    assert fingerprint(path, 0) != fingerprint(path, 1)
    assert _describe(path)["sha256"] == file_sha256(path) == hashlib.sha256(b"first").hexdigest()
    assert reads == ["a.png"]


@pytest.mark.parametrize("change", ["content", "another file", "time alone"])
def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[str], change: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == hashlib.sha256(b"first").hexdigest()
    if change == "another file":
        (tmp_path / "b.png").write_bytes(b"other")
        os.utime(tmp_path / "b.png", ns=(1, 1))
        (tmp_path / "b.png").replace(path)
    else:
        path.write_bytes(b"later" if change == "content" else b"first")
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest() and reads == ["a.png"] * 2
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "none")
