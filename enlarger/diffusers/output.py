"""What the pipelines return: an object that is read by name, by position, or like a dictionary."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """The pictures, and which of them the safety checker flagged; None if it was not asked.

    Positions, keys and length count what is not None, as in diffusers.
    """

    images: Any  # list of PIL images, array (B, H, W, 3) or tensor (B, C, H, W)
    nsfw_content_detected: list[bool] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return self.values()

    def keys(self) -> tuple[str, ...]:
        return ("images",) if self.nsfw_content_detected is None else ("images", "nsfw_content_detected")

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


ImagePipelineOutput = StableDiffusionPipelineOutput = StableDiffusionXLPipelineOutput = PipelineOutput
