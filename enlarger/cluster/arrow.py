"""What is used of pyarrow, which has no types of its own, with types."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, BinaryIO, Protocol


class FileType(Protocol):
    """What a name is of: NotFound, File, Directory."""

    @property
    def name(self) -> str: ...


class FileInfo(Protocol):
    """What a file system says of a name."""

    @property
    def type(self) -> FileType: ...
    @property
    def base_name(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def mtime_ns(self) -> int | None: ...


class FileSystem(Protocol):
    """A file system; names are texts with /. All raise OSError."""

    def get_file_info(self, names: Any, /) -> Sequence[FileInfo]: ...
    def open_input_stream(self, name: str, /) -> AbstractContextManager[BinaryIO]: ...
    def open_output_stream(self, name: str, /) -> AbstractContextManager[BinaryIO]: ...
    def create_dir(self, name: str, /, *, recursive: bool) -> None: ...
    def move(self, source: str, target: str, /) -> None: ...
    def delete_file(self, name: str, /) -> None: ...
    def delete_dir(self, name: str, /) -> None: ...


def pyarrow_fs() -> Any:
    """pyarrow's file systems."""
    return import_module("pyarrow.fs")


def column_table(name: str, texts: Sequence[str]) -> Any:
    """A table with one column of text."""
    pyarrow: Any = import_module("pyarrow")
    return pyarrow.table({name: pyarrow.array(texts, pyarrow.string())})
