"""Pictures of a part's images, drawn again or read from files, and where their regions lie."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sede_kernels.training.data.draw import Pen
from sede_kernels.training.data.glyphs import SOURCES
from sede_kernels.training.data.precomp import Ints, Part
from sede_kernels.training.files import UserError, read_manifest
from sede_kernels.training.photographs import Boxes, PictureFiles, read_picture


class Gallery(Protocol):
    """What a page needs to know of the images of a part."""

    def picture(self, image: int, size: int) -> Any:
        """One image as a Pillow thumbnail, ``size`` pixels wide and high."""

    def name(self, image: int) -> str:
        """A few words below it."""

    def boxes(self, image: int, size: int, regions: int) -> Ints | None:
        """(R, 4) int: left, top, right, bottom of its regions in the thumbnail; None: unknown."""


class Drawings:
    """Draws the images of a prepared part again.

    Args:
        folder: a prepared folder.
        part: its part.
        images: how many images will be asked for.

    Raises:
        UserError: the folder has no pictures, or what describes them is damaged.
    """

    def __init__(self, folder: Path, part: str, images: int = 0) -> None:
        path = folder / f"{part}_images.json"
        manifest = read_manifest(folder)
        if manifest is None or str(manifest.get("name")) not in SOURCES or not path.exists():
            raise UserError(
                f"{folder} has features but no pictures: name the folder of the pictures with "
                "--images (sets of `sede prepare` are drawn without it)."
            )
        self._drawings = _read_drawings(path)
        if len(self._drawings) < images:
            raise UserError(
                f"{path} describes {len(self._drawings)} of {images} images: delete {folder} and "
                "run `sede prepare` again."
            )
        source = SOURCES[manifest["name"]]()
        self._pen = Pen(source.font, source.font_size)

    def picture(self, image: int, size: int) -> Any:
        """One image as a Pillow thumbnail."""
        from PIL import Image

        pixels = self._pen.draw(self._drawings[image]["glyph"])
        return Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS)

    def name(self, image: int) -> str:
        """The first caption of an image."""
        return str(self._drawings[image]["names"][0])

    def boxes(self, image: int, size: int, regions: int) -> Ints | None:
        """The cells of the square grid that the features are of."""
        side = math.isqrt(regions)
        if side * side != regions:
            return None
        edges = [math.ceil(place * size / side) for place in range(side + 1)]
        return np.array(
            [
                (edges[x], edges[y], edges[x + 1], edges[y + 1])
                for y in range(side)
                for x in range(side)
            ],
            np.int64,
        )


def _read_drawings(path: Path) -> list[dict[str, Any]]:
    """Glyph and names of each image."""
    try:
        drawings: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8-sig"))
        for drawing in list(drawings):
            str.strip(drawing["glyph"]), str.strip(drawing["names"][0])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): delete {path.parent} and run "
            "`sede prepare` again."
        ) from error
    return drawings


class Photographs:
    """Picture files of a feature folder, and the boxes of its regions where it has them.

    Args:
        folder: the feature folder.
        part_name: its part.
        part: the same, read.
        images: folder of the picture files.

    Raises:
        UserError: a picture is missing, or the boxes do not fit the features.
    """

    def __init__(self, folder: Path, part_name: str, part: Part, images: Path) -> None:
        self._files = PictureFiles(folder, part_name, part, images).paths
        self._boxes = Boxes.find(folder, part_name, part)
        self._captions = _first_captions(part)

    def picture(self, image: int, size: int) -> Any:
        """One image in the middle of a white square, its longer side ``size``."""
        from PIL import Image

        whole = read_picture(self._files[image])
        width, height, left, top = _place(whole.size, size)
        thumb = Image.new("RGB", (size, size), "white")
        thumb.paste(whole.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        return thumb

    def name(self, image: int) -> str:
        """The first caption of an image."""
        return self._captions[image] if image in self._captions else str(self._files[image].stem)

    def boxes(self, image: int, size: int, regions: int) -> Ints | None:
        """The boxes of an image in its thumbnail.

        Raises:
            UserError: one reaches beyond the picture.
        """
        if self._boxes is None:
            return None
        whole = read_picture(self._files[image]).size
        width, height, left, top = _place(whole, size)
        shares = self._boxes.of(image, whole)
        places = shares * (width, height, width, height) + (left, top, left, top)
        return np.clip(places.round(), 0, size).astype(np.int64)


def _place(whole: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Width, height, left and top of a picture in the middle of a square of ``size``."""
    scale = size / max(whole)
    width, height = (max(1, round(side * scale)) for side in whole)
    return width, height, (size - width) // 2, (size - height) // 2


def _first_captions(part: Part) -> dict[int, str]:
    """The first caption of each image that has one."""
    found: dict[int, str] = {}
    for caption, image in zip(part.captions, part.image_of.tolist(), strict=True):
        found.setdefault(image, caption)
    return found


def open_gallery(
    folder: Path,
    part_name: str,
    part: Part,
    images: Path | None = None,
    shown: Sequence[int] = (),
) -> Gallery:
    """The pictures of a part.

    Args:
        folder: its folder.
        part_name: its name there.
        part: the same, read.
        images: folder of picture files; None: they are drawn.
        shown: images whose boxes are looked at now, so that a fault does not wait until the end.

    Raises:
        UserError: there is nothing to show, or what there is does not fit.
    """
    if images is None:
        return Drawings(folder, part_name, len(part.rows))
    gallery = Photographs(folder, part_name, part, images)
    for image in shown:
        gallery.boxes(image, 100, part.features.shape[1])
    return gallery
