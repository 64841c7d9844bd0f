"""Folders of random weights in official architectures, written by diffusers and transformers.

    python -m benchmarks._weights sd-x2-latent-upscaler FOLDER

The configurations and the tokenizer are the tests' copies of the official files.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "tests" / "data" / "configs"
NOT_WRITTEN = ("safety_checker", "feature_extractor")


def main() -> None:
    """Write one folder."""
    make(sys.argv[1], Path(sys.argv[2]))


def make(repository: str, folder: Path) -> None:
    """Random weights, tokenizer and configs of a repository in the ordinary layout; SDXL's in float16, to be smaller.

    All but the x2 upscaler get diffusers' Euler scheduler on their own times, so that both sides take the same steps.
    """
    import diffusers
    import torch
    import transformers

    from tests.support.clip_files import tokenizer_folder

    torch.manual_seed(0)
    index = read(repository, "model_index")
    parts: dict[str, Any] = {}
    for name, stated in index.items():
        if name.startswith("_") or not isinstance(stated, list):
            continue
        library, kind = stated
        if name in NOT_WRITTEN:
            parts[name] = None
        elif name == "tokenizer":
            with tempfile.TemporaryDirectory() as words:
                place = tokenizer_folder(Path(words) / "tokenizer", repository)
                parts[name] = transformers.CLIPTokenizer.from_pretrained(place)
        elif library == "transformers":
            parts[name] = getattr(transformers, kind)(transformers.CLIPTextConfig(**read(repository, name)))
        else:
            parts[name] = getattr(diffusers, kind).from_config(read(repository, name))
    pipeline = getattr(diffusers, index["_class_name"])
    extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    if repository != "sd-x2-latent-upscaler":
        kept = {"timestep_spacing": "leading", "steps_offset": 1}
        parts["scheduler"] = diffusers.EulerDiscreteScheduler.from_config(parts["scheduler"].config, **kept)
    made = pipeline(**parts, **extra)
    (made.to(torch.float16) if "-xl-" in repository else made).save_pretrained(folder)


def read(repository: str, name: str) -> dict[str, Any]:
    """One configuration file of a repository."""
    return json.loads((CONFIGS / repository / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
