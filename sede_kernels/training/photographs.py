"""Files of a feature folder's pictures, and the boxes of its regions."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sede_kernels.training.data.precomp import Part, read_array, read_numbers
from sede_kernels.training.files import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BOX_FILES = ("boxes", "ims_bbx")  # <part>_..., as code of the SCAN family names them
_SLACK = 1.0  # pixels by which a detector's box may leave the picture

Floats = np.ndarray[Any, np.dtype[np.float64]]


class PictureFiles:
    """Which file is the picture of which image.

    ``<part>_files.txt`` names them, a line for each row of the features. Without it
    ``id_mapping.json``, in the folder or above it, names the file of each number in
    ``<part>_ids.txt``. Without that too, the name of a file ends with its number.

    Attributes:
        paths: one for each distinct image of the part.

    Raises:
        UserError: nothing says which is which, or a file is missing.
    """

    def __init__(self, folder: Path, part_name: str, part: Part, images: Path) -> None:
        if not images.is_dir():
            raise UserError(f"--images takes the folder of the pictures, got {str(images)!r}.")
        self._folder, self._part_name, self._part, self._images = folder, part_name, part, images
        listed = folder / f"{part_name}_files.txt"
        if listed.exists():
            names = self._each_image(_lines(listed), listed)
            self.paths = [images / name for name in names]
        else:
            self.paths = self._by_ids()
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"{path} is missing: expected a picture of {folder}/{part_name}.")

    def _by_ids(self) -> list[Path]:
        source = self._folder / f"{self._part_name}_ids.txt"
        numbers = read_numbers(source)
        if numbers is None:
            raise UserError(
                f"{self._folder} does not say which picture is which: write "
                f"{self._part_name}_files.txt with the file of each row of "
                f"{self._part_name}_ims.npy."
            )
        ids = self._each_image(numbers.tolist(), source)
        mapping = next(
            (
                place / "id_mapping.json"
                for place in (self._folder, self._folder.absolute().parent)
                if (place / "id_mapping.json").exists()
            ),
            None,
        )
        if mapping is not None:
            names = _read_mapping(mapping)
            lost = next((number for number in ids if str(number) not in names), None)
            if lost is not None:
                raise UserError(f"{mapping} has no file for the id {lost} of {source}.")
            return [self._images / names[str(number)] for number in ids]
        return self._numbered(ids)

    def _numbered(self, ids: list[int]) -> list[Path]:
        """Files whose name ends with the id, with or without zeros before it."""
        found: dict[int, list[Path]] = {}
        for path in sorted(self._images.rglob("*")):
            tail = re.search(r"[0-9]+$", path.stem)
            if tail and path.suffix.lower() in _SUFFIXES:
                found.setdefault(int(tail[0]), []).append(path)
        for number in ids:
            here = found.get(number, [])
            if len(here) != 1:
                what = f"{here[0]} and {here[1]}" if here else "none"
                raise UserError(
                    f"expected one picture in {self._images} whose name ends with the id {number} "
                    f"of {self._folder}/{self._part_name}_ids.txt, found {what}: write "
                    f"{self._part_name}_files.txt with the file of each row of "
                    f"{self._part_name}_ims.npy."
                )
        return [found[number][0] for number in ids]

    def _each_image(self, values: Sequence[Any], source: Path) -> list[Any]:
        """One value for each distinct image, of one for each row, image or caption."""
        part = self._part
        images = len(part.rows)
        if len(values) == len(part.features):
            return [values[row] for row in part.rows.tolist()]
        if len(values) == images:
            return list(values)
        if len(values) == len(part.captions):
            first = dict(zip(part.image_of.tolist()[::-1], values[::-1], strict=True))
            if len(first) == images:
                return [first[image] for image in range(images)]
        raise UserError(
            f"{source} has {len(values)} lines for {len(part.features)} rows of "
            f"{self._part_name}_ims.npy: expected one for each."
        )


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from error
    return [line.strip() for line in lines]


def _read_mapping(path: Path) -> dict[str, str]:
    try:
        mapping: dict[str, str] = json.loads(path.read_text(encoding="utf-8-sig"))
        for name in list(mapping.values()):
            str.strip(name)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} must hold a file name for each id ({type(error).__name__}): expected "
            '{"17": "17.jpg", ...}.'
        ) from error
    return mapping


def read_picture(path: Path) -> Any:
    """A picture as Pillow's RGB, upright, transparent places white.

    Raises:
        UserError: it is no picture, or damaged.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}): copy it again."
        ) from error
    paper = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(paper, upright).convert("RGB")


@dataclass(frozen=True)
class Boxes:
    """Boxes of the regions of each image.

    Attributes:
        path: their file.
        values: (N, R, 4) left, top, right, bottom of each distinct image's regions, memory mapped
            or a copy.
        shares: whether they are shares of width and height (all within 0 and 1), or pixels.
    """

    path: Path
    values: np.ndarray[Any, Any]
    shares: bool

    @classmethod
    def find(cls, folder: Path, part_name: str, part: Part) -> "Boxes | None":
        """Those of a part, or None where the folder has none.

        Raises:
            UserError: they do not fit the features, or are no boxes.
        """
        paths = [folder / f"{part_name}_{name}.npy" for name in _BOX_FILES]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            return None
        rows, regions = part.features.shape[:2]
        values = read_array(path, "boxes (images, regions, 4)")
        if values.dtype.kind not in "fiu":
            raise UserError(f"{path} must hold numbers, got {values.dtype}.")
        counts = {rows, len(part.rows)}
        if values.ndim != 3 or len(values) not in counts or values.shape[1:] != (regions, 4):
            raise UserError(
                f"{path} must hold ({rows} images, {regions} regions, 4), got {values.shape}."
            )
        if len(values) == rows:
            values = values[part.rows]
        good = np.isfinite(values).all() and bool((values >= -_SLACK).all())
        if not good or (values[..., 2:] < values[..., :2]).any():
            raise UserError(
                f"{path} must hold left, top, right, bottom of each region, right and bottom not "
                "below left and top; it has other numbers."
            )
        return cls(path, values, bool(values.max() <= 1))

    def of(self, image: int, size: tuple[int, int]) -> Floats:
        """(R, 4) shares of width and height.

        Raises:
            UserError: a box in pixels leaves the picture.
        """
        boxes = np.asarray(self.values[image], np.float64)
        if self.shares:
            return boxes
        width, height = size
        sides = np.array([width, height, width, height], np.float64)
        if (boxes > sides + _SLACK).any():
            right, bottom = boxes[:, 2].max(), boxes[:, 3].max()
            raise UserError(
                f"{self.path} has boxes up to {right:g} x {bottom:g} for a picture of {width} x "
                f"{height}: save them for the pictures in --images, or as shares from 0 to 1."
            )
        return boxes / sides
