"""What is enlarged to be measured: halves of known pictures, as they are or damaged by seed; others' results beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.decode import open_image
from enlarger.image.degrade import DEGRADATIONS
from enlarger.image.picture import SUFFIXES, Picture, list_pictures, read_picture, save_image, to_pil


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture whose large version is known."""

    name: str
    truth: Image.Image
    small: Image.Image


def sets_in(folder: Path) -> dict[str, list[Path]]:
    """The pictures of a folder; those in folders inside it are sets of their own. InputError if there are none."""
    paths = list_pictures(folder)
    if not paths:
        raise InputError(f"{folder}: no pictures found; give a folder of photos ({', '.join(SUFFIXES)})")
    names = sorted({p.parent.name for p in paths})
    return {name: [p for p in paths if p.parent.name == name] for name in names}


def check_degradations(names: Sequence[str]) -> None:
    """InputError for one that does not exist."""
    for name in names:
        if name not in DEGRADATIONS:
            raise InputError(f"no degradation is called {name!r}; there are {', '.join(DEGRADATIONS)}")


def sample_of(path: Path, degradation: str | None = None, seed: int = 0) -> Sample:
    """The picture and its half (antialiased bicubic, 8 bits); `degradation` befalls the half."""
    image = to_pil(Picture(read_picture(path).colour))
    truth = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))
    small = truth.resize((truth.width // 2, truth.height // 2), Image.Resampling.BICUBIC)
    if degradation is not None:
        draw = np.random.default_rng([seed, crc32(f"{degradation}/{path.stem}".encode())])
        small = Image.fromarray(DEGRADATIONS[degradation](np.asarray(small), draw))
    return Sample(path.stem, truth, small)


def keep(folder: Path, group: str, sample: Sample, made: Mapping[str, Image.Image]) -> None:
    """Write the input and all results, as FOLDER/METHOD/SET/NAME.png: the inputs for other programs to enlarge."""
    for method, image in {"input": sample.small, **made}.items():
        path = folder / method.replace(",", "").replace(" ", "-") / group.replace(" ", "-") / f"{sample.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, path, overwrite=True)


def beside(folder: Path | None, group: str, sample: Sample) -> dict[str, Image.Image]:
    """What other programs made of the same input, from FOLDER/METHOD/SET/NAME.png. InputError for another size."""
    found: dict[str, Image.Image] = {}
    for method in sorted(p for p in folder.iterdir() if p.is_dir()) if folder is not None else ():
        path = method / group.replace(" ", "-") / f"{sample.name}.png"
        if method.name != "input" and path.exists():
            with open_image(path) as (opened, _):
                image = opened.convert("RGB")
            if image.size != sample.truth.size:
                raise InputError(f"{path}: is {image.size}, expected {sample.truth.size}, twice its input")
            found[method.name] = image
    return found
