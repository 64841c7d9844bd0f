"""What the pipelines return: an object that is read by name, by position, or like a dictionary."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class PipelineOutput:
    """The pictures. `nsfw_content_detected` is always None: nothing here judges pictures.

    Positions, keys and length count what is not None, as in diffusers.
    """

    images: Any  # list of PIL images, array (B, H, W, 3) or tensor (B, C, H, W)
    nsfw_content_detected: None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.images,)

    def keys(self) -> tuple[str, ...]:
        return ("images",)

    def values(self) -> tuple[Any, ...]:
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        return (("images", self.images),)

    def __getitem__(self, key: int | slice | str) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


ImagePipelineOutput = StableDiffusionPipelineOutput = PipelineOutput
