"""A file is written whole, or its name stays as it was."""

import os
from pathlib import Path

import pytest

from enlarger.image.atomic_write import atomic_write


def write(path: Path, data: bytes, **options: bool) -> None:
    with atomic_write(path, **options) as stream:
        stream.write(data)


@pytest.mark.parametrize("options", [{}, {"durable": False}, {"single_writer": True}])
def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "a.json"
    for data in (b"old", b"new"):
        write(path, data, **options)
        assert path.read_bytes() == data and os.listdir(tmp_path) == ["a.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    write(path, b"old")
    with pytest.raises(type(error)), atomic_write(path) as stream:
        stream.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_came_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_links(*names: object) -> None:
        raise OSError("no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    write(tmp_path / "a", b"first", overwrite=False)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "b", overwrite=False) as stream:
        stream.write(b"ours")
        (tmp_path / "b").write_bytes(b"theirs")
    assert (tmp_path / "b").read_bytes() == b"theirs" and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes(b"left over")
    write(tmp_path / "a", b"new", single_writer=True)
    assert (tmp_path / "a").read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]
