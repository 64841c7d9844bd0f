"""What makes a job's pictures again; `image.generation` writes it into their files."""

from collections.abc import Mapping, Sequence
from typing import Any

from enlarger.image.generation import Json


def generation_metadata(
    version: str, task: str, model: str, options: Mapping[str, Any], seeds: Sequence[int], input_info: Any
) -> Json:
    """All that a job's pictures depend on. `input_info` is what is known of the picture that was given."""
    return {
        "enlarger": version,
        "task": task,
        "model": model,
        "options": dict(options),
        "seeds": list(seeds),
        "input": input_info,
    }


def metadata_of_image(metadata: Json, index: int) -> Json:
    """The metadata of one of the job's pictures alone."""
    options = metadata["options"] | ({"count": 1} if "count" in metadata["options"] else {})
    return metadata | {"options": options, "seeds": metadata["seeds"][index : index + 1]}
