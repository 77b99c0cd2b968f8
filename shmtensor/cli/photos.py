"""Real photographs: where to find some, and how one becomes a training sample."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE = 224
SUFFIXES = (".jpg", ".jpeg")
MOST = 64  # photographs used of a large folder: enough for variety, few enough to check each one first

# Packages that ship photographs, and where. Found by their folder: importing them would take seconds.
SHIPPED = (
    ("skimage", "data/*.jpg"),
    ("sklearn", "datasets/images/*.jpg"),
    ("matplotlib", "mpl-data/sample_data/*.jpg"),
)


class NoPhotos(Exception):
    """There is nothing to decode, or nothing to decode it with; the message says what to install."""


class BadFolder(Exception):
    """The folder that was asked for holds no photographs."""


def find(folder: Path | None) -> list[Path]:
    """Readable JPEG files of `folder`, or those that installed packages ship."""
    if find_spec("PIL") is None:
        raise NoPhotos("photographs need Pillow: pip install pillow scikit-image")
    found = _evenly(_in_folder(folder) if folder else _shipped(), MOST)
    readable = [path for path in found if _is_readable(path)]
    if readable:
        return readable
    if folder:
        raise BadFolder(f"no readable JPEG file (*.jpg, *.jpeg) in {folder}")
    raise NoPhotos("none found: pip install scikit-image (which ships some), or name a folder: --images DIR")


def sample_into(path: Path, rng: np.random.Generator, out: NDArray[np.uint8]) -> None:
    """Decode, crop at random, resize to 224 x 224, and lay the result into `out` as (3, 224, 224)."""
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB")
    box = _random_box(picture.width, picture.height, rng)
    picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    out[...] = np.asarray(picture).transpose(2, 0, 1)


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box of a quarter to the whole of the area and of aspect ratio 3:4 to 4:3, clipped to the picture."""
    area = width * height * rng.uniform(0.25, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    across = min(width, math.sqrt(area * ratio))
    down = min(height, math.sqrt(area / ratio))
    left, top = rng.uniform(0.0, width - across), rng.uniform(0.0, height - down)
    return left, top, left + across, top + down


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _shipped() -> list[Path]:
    found: list[Path] = []
    for package, pattern in SHIPPED:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            found += sorted(Path(root).glob(pattern))
    return found


def _evenly(paths: list[Path], most: int) -> list[Path]:
    """At most `most` of them, spread over the whole list."""
    return [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths


def _is_readable(path: Path) -> bool:
    """Whether the whole file decodes: a damaged one is better found here than by a worker in mid-race."""
    from PIL import Image

    try:
        with Image.open(path, formats=["JPEG"]) as file:
            file.draft("RGB", (SIDE // 8, SIDE // 8))  # reads every byte, but computes few pixels
            file.load()
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
