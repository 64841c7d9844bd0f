"""Make docs/before-after.png: crops of the examples, enlarged by interpolation and by the bundled model.

python examples/before_after.py
"""

from pathlib import Path

from PIL import Image

import enlarger
from enlarger.evaluate.sheet import contact_sheet

HERE = Path(__file__).parent
CROPS = {"mandrill": (150, 90, 278, 218), "bridge": (170, 110, 298, 238)}  # of the input, in pixels


def main() -> None:
    """One row per example: the input, bicubic, Lanczos, and the model at two settings."""
    rows: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for name, box in CROPS.items():
        with Image.open(HERE / f"{name}.jpg") as opened:
            photo = opened.convert("RGB")
        size = (2 * photo.width, 2 * photo.height)
        large = {
            "input": photo.resize(size, Image.Resampling.NEAREST),
            "Lanczos": photo.resize(size, Image.Resampling.LANCZOS),
            "enlarger": enlarger.upscale(photo).image,
            "enlarger, detail 1": enlarger.upscale(photo, detail=1.0).image,
        }
        doubled = tuple(2 * side for side in box)
        rows.append((name, [(caption, image.crop(doubled)) for caption, image in large.items()]))
    contact_sheet(rows, zoom=1).save(HERE.parent / "docs" / "before-after.png")


if __name__ == "__main__":
    main()
