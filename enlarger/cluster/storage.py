"""Files and folders on this machine's disks or behind a URI, through pyarrow's file systems and fsspec's."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from enlarger.cluster.arrow import FileInfo, FileSystem, pyarrow_fs
from enlarger.errors import InputError
from enlarger.image.atomic_write import atomic_write
from enlarger.image.decode import one_line

READ_ONLY = ("http", "https")
OBJECT_STORES = ("s3", "gs", "gcs", "abfs", "az", "hf")  # where a file appears when its last byte is there
S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # variables that tell every client of S3 its server
S3_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


@dataclass(frozen=True)
class FileState:
    """Whether a file is there, and a text that changes with its contents: its size and when it was written."""

    exists: bool
    version: str = ""


@dataclass(frozen=True)
class Storage:
    """Where paths lie: on this machine's disks, or in the file system of a URI; then they begin with its bucket."""

    uri: str | None = None

    @property
    def is_local(self) -> bool:
        return self.uri is None

    def show(self, path: Path) -> str:
        """A path as a person names it, without what a URI says of users and servers."""
        return str(path) if self.uri is None else f"{urlsplit(self.uri).scheme}://{path.as_posix().lstrip('/')}"

    def is_folder(self, path: Path) -> bool:
        """Whether a folder is there; object stores have one where something lies in it."""
        return os.path.isdir(path) if self.uri is None else self._infos([path])[0].type.name == "Directory"

    def missing_reason(self, path: Path) -> str | None:
        """Why there is no such file, as a message; None if there is one."""
        return None if self.states([path])[path].exists else "no such file or folder"

    def is_link(self, path: Path) -> bool:
        """Whether a folder is another one's second name."""
        return self.uri is None and os.path.islink(path)

    def walk(self, folder: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`: a folder, those in it and its files; a folder is listed when it is come to."""
        if self.uri is None:
            yield from os.walk(folder, onerror=on_error)
            return
        infos = self._filesystem().get_file_info(pyarrow_fs().FileSelector(_name(folder)))
        folders = [info.base_name for info in infos if info.type.name == "Directory"]
        yield str(folder), folders, [info.base_name for info in infos if info.type.name == "File"]
        for name in folders:
            yield from self.walk(folder / name, on_error)

    def states(self, paths: Iterable[Path]) -> dict[Path, FileState]:
        """What is known of files without reading them, asked for together."""
        paths = list(paths)
        if self.uri is None:
            return {path: _local_state(path) for path in paths}
        return dict(zip(paths, map(_state, self._infos(paths)), strict=True))

    def read(self, path: Path) -> bytes:
        """A whole file. Raises OSError."""
        if self.uri is None:
            return path.read_bytes()
        with self._filesystem().open_input_stream(_name(path)) as stream:
            return stream.read()

    def open(self, path: Path) -> Path | bytes:
        """A file as readers of pictures take it. Raises OSError."""
        return path if self.uri is None else self.read(path)

    def put(self, path: Path, data: bytes) -> None:
        """Write a file, which has its name when all of it is there. Raises OSError."""
        if self.uri is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as stream:
                stream.write(data)
            return
        is_whole = urlsplit(self.uri).scheme in OBJECT_STORES
        first = path if is_whole else path.with_name(f".{path.name}.{os.getpid()}.part")
        if not is_whole:
            self._filesystem().create_dir(_name(path.parent), recursive=True)
        with self._filesystem().open_output_stream(_name(first)) as stream:
            stream.write(data)
        if not is_whole:
            self._filesystem().move(_name(first), _name(path))

    def remove(self, path: Path) -> None:
        """Delete a file. Raises OSError."""
        path.unlink() if self.uri is None else self._filesystem().delete_file(_name(path))

    def remove_folder(self, folder: Path) -> None:
        """Delete an empty folder. Raises OSError."""
        folder.rmdir() if self.uri is None else self._filesystem().delete_dir(_name(folder))

    def files(self, folder: Path) -> list[Path]:
        """The files in a folder by name; none where the folder is not there."""
        if not self.is_folder(folder):
            return []
        _, _, names = next(self.walk(folder, _raise))
        return [folder / name for name in sorted(names)]

    def _infos(self, paths: Sequence[Path]) -> Sequence[FileInfo]:
        return self._filesystem().get_file_info([_name(path) for path in paths])

    def _filesystem(self) -> FileSystem:
        assert self.uri is not None
        return _open(self.uri)[0]


def locate(location: str | Path) -> tuple[Storage, Path]:
    """Where a path or URI lies, and its path there. Raises InputError for a URI that cannot be opened."""
    text = str(location)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Storage(), Path(text)
    if scheme == "file":
        return Storage(), Path(rest)
    _, path = _open(text)
    return Storage(text), Path(path)


def is_read_only(storage: Storage) -> bool:
    """Whether nothing can be written there."""
    return storage.uri is not None and urlsplit(storage.uri).scheme in READ_ONLY


@cache
def _open(uri: str) -> tuple[FileSystem, str]:
    """The file system of a URI, once in a process, and the path in it."""
    arrow, parts = pyarrow_fs(), urlsplit(uri)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    try:
        if parts.scheme == "s3" and not parts.query and any(map(os.environ.get, (*S3_ENDPOINTS, *S3_REGIONS))):
            return _s3(), f"{parts.netloc}{parts.path}".rstrip("/")
        if parts.scheme in ("s3", "gs", "gcs", "abfs", "hdfs"):
            filesystem, path = arrow.FileSystem.from_uri(uri)
            return filesystem, path.rstrip("/")
        url_to_fs: Any = import_module("fsspec.core").url_to_fs  # fsspec has no types
        filesystem, path = url_to_fs(uri)
        return arrow.PyFileSystem(arrow.FSSpecHandler(filesystem)), str(path).rstrip("/")
    except ImportError as error:
        raise InputError(f"{shown}: {parts.scheme}:// needs a package more ({one_line(error)}); install it") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{shown}: cannot be opened ({one_line(error)}); check the address and its keys") from error


def _s3() -> FileSystem:
    """S3 as the variables of its clients describe it, without asking Amazon where a bucket lies."""
    endpoint = next((value for name in S3_ENDPOINTS if (value := os.environ.get(name))), None)
    region = next((value for name in S3_REGIONS if (value := os.environ.get(name))), "us-east-1")
    if endpoint is None:
        return pyarrow_fs().S3FileSystem(region=region)
    parts = urlsplit(endpoint)
    return pyarrow_fs().S3FileSystem(region=region, endpoint_override=parts.netloc, scheme=parts.scheme)


def _name(path: Path) -> str:
    """A path as file systems of URIs have it: http's keeps its scheme, whose slashes a `Path` folds."""
    text = path.as_posix()
    for scheme in READ_ONLY:
        if text.startswith(f"{scheme}:/"):
            return f"{scheme}://{text[len(scheme) + 2 :]}"
    return text


def _local_state(path: Path) -> FileState:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return FileState(os.path.lexists(path) if "\0" not in str(path) else False)
    return FileState(True, f"{found.st_size} {found.st_mtime_ns}")


def _state(info: FileInfo) -> FileState:
    exists = info.type.name != "NotFound"
    return FileState(exists, f"{info.size} {info.mtime_ns}" if exists else "")


def _raise(error: OSError) -> None:
    raise error
