"""Models in the cache that huggingface_hub and diffusers keep: found and read, never changed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from enlarger.hub.aliases import RepoSource, is_commit

REPO_PREFIX = "models--"


@dataclass(frozen=True)
class HuggingFaceSnapshot:
    """The files of a repository at a commit; `folder` holds links to them."""

    folder: Path
    repository: str
    revision: str

    def files(self) -> list[str]:
        """All files, by their paths in the repository, those whose content is missing too."""
        paths = (path for path in self.folder.rglob("*") if path.is_symlink() or path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths if not path.is_dir())

    def missing_files(self) -> list[str]:
        """Links to what is not there any more, or not yet."""
        return [path for path in self.files() if not (self.folder / path).is_file()]

    def size(self) -> int:
        """Bytes of the files that are there."""
        paths = (self.folder / path for path in self.files())
        return sum(path.stat().st_size for path in paths if path.is_file())


def huggingface_cache_dir() -> Path:
    """The folder: HF_HUB_CACHE, or `hub` in HF_HOME, or `huggingface/hub` in the user's cache folder."""
    if configured := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(configured).expanduser()
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(cache_home, "huggingface")).expanduser() / "hub"


def find_huggingface_snapshot(source: RepoSource) -> HuggingFaceSnapshot | None:
    """The snapshot with weights that a name stands for: of its revision, else of main, else the newest there is."""
    for repository in source.repositories:
        folder = huggingface_cache_dir() / (REPO_PREFIX + repository.replace("/", "--"))
        by_age = sorted(_snapshots(folder), key=lambda found: found.folder.stat().st_mtime, reverse=True)
        preferred = [_commit(folder, revision) for revision in (source.revision, "main")]
        by_preference = sorted(by_age, key=lambda found: (*preferred, found.revision).index(found.revision))
        if by_preference:
            return by_preference[0]
    return None


def huggingface_snapshots() -> Iterator[HuggingFaceSnapshot]:
    """All snapshots in the cache that hold weights in safetensors."""
    for folder in sorted(huggingface_cache_dir().glob(f"{REPO_PREFIX}*")):
        yield from _snapshots(folder)


def is_huggingface_snapshot(folder: Path) -> bool:
    """Whether a folder is a snapshot in such a cache, by its place."""
    return is_commit(folder.name) and folder.parent.name == "snapshots"


def _snapshots(repo_folder: Path) -> Iterator[HuggingFaceSnapshot]:
    repository = repo_folder.name.removeprefix(REPO_PREFIX).replace("--", "/", 1)
    for folder in sorted(repo_folder.glob("snapshots/*")):
        if is_commit(folder.name) and any(folder.rglob("*.safetensors")):
            yield HuggingFaceSnapshot(folder, repository, folder.name)


def _commit(repo_folder: Path, revision: str) -> str:
    """The commit that a revision was when it was fetched last; "" if that is not known."""
    if is_commit(revision):
        return revision
    try:
        return (repo_folder / "refs" / revision).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
