"""A page of search results: words on the left of each row, the images they find beside them."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sede_kernels.training.data.precomp import Part
from sede_kernels.training.data.text import Vocabulary, tokenize
from sede_kernels.training.files import atomic_file
from sede_kernels.training.gallery import Gallery
from sede_kernels.training.similarities import Similarities

TOP = 5
_THUMB, _GAP, _NAME, _HEAD = 108, 14, 42, 40  # pixels
INK, GREY, LINE = "#1a1a1a", "#7a7a7a", "#d8d8d8"
RIGHT, PAPER = "#1a9850", "#ffffff"


@dataclass(frozen=True)
class Hit:
    """One found image.

    Attributes:
        image: its number in the part.
        score: similarity.
        right: whether the query names it.
    """

    image: int
    score: float
    right: bool


@dataclass(frozen=True)
class Search:
    """The result of one query.

    Attributes:
        query: its words.
        hits: the best images, best first.
        answer: the best ranked right image.
        rank: its rank, from 1.
        unknown: whether no word of the query occurs in training; the answer is then a guess.
    """

    query: str
    hits: list[Hit]
    answer: int
    rank: int
    unknown: bool


def search(
    scores: Similarities,
    part: Part,
    captions: Sequence[int],
    vocabulary: Vocabulary,
    top: int = TOP,
) -> list[Search]:
    """The best images of some captions.

    Args:
        scores: of N images with C captions.
        part: names the captions and their owners.
        captions: which captions ask.
        vocabulary: the words of training.
        top: images to list.
    """
    found = []
    for caption in captions:
        owners = set(part.pairs[part.pairs[:, 0] == caption, 1].tolist())
        column = scores.column(caption)
        order = np.argsort(-column, kind="stable")
        rank = next(i for i, image in enumerate(order.tolist(), 1) if image in owners)
        hits = [Hit(image, float(column[image]), image in owners) for image in order[:top].tolist()]
        query = part.captions[caption]
        unknown = not any(word in vocabulary.words for word in tokenize(query))
        found.append(Search(query, hits, int(order[rank - 1]), rank, unknown))
    return found


def results_page(
    searches: list[Search],
    gallery: Gallery,
    title: str,
    note: str,
    heads: tuple[str, str] | None = None,
) -> Any:
    """Lay the searches out in two columns, each under its head where there are heads.

    A green frame and a tick mark the right images; where none is among the best, the right one
    stands apart at the end of its row with its rank.

    Returns:
        A Pillow image.
    """
    from PIL import Image, ImageDraw

    cell_width = (TOP + 1) * (_THUMB + _GAP) + 3 * _GAP
    cell_height = _HEAD + _THUMB + _NAME + 2 * _GAP
    rows = (len(searches) + 1) // 2
    top = 96 if heads is None else 140
    size = (2 * cell_width + 3 * _GAP, top + rows * cell_height + _GAP)
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((2 * _GAP, 18), title, INK, font(28))
    pen.text((2 * _GAP, 58), note, GREY, font(15))
    for column, head in enumerate(heads or ()):
        left = 2 * _GAP + column * (cell_width + _GAP // 2)
        words = fit(pen, head, cell_width - 2 * _GAP, font(22))
        pen.text((left, top - 40), words, INK, font(22))
    for number, result in enumerate(searches):
        column, row = divmod(number, rows)
        left = 2 * _GAP + column * (cell_width + _GAP // 2)
        _draw_row(page, pen, result, gallery, left, top + row * cell_height)
    return page


def _draw_row(page: Any, pen: Any, result: Search, gallery: Gallery, left: int, top: int) -> None:
    pen.line((left, top, left + (TOP + 1) * (_THUMB + _GAP) + _GAP, top), LINE, 1)
    width = TOP * (_THUMB + _GAP)
    letters = font(20, result.query)
    query = fit(pen, f"“{result.query}”", width, letters)
    pen.text((left, top + 9), query, INK, letters)
    if result.unknown:
        x = left + pen.textlength(query, letters) + _GAP
        pen.text((x, top + 14), "no word of it is in training", GREY, font(13))
    hits = [(hit.image, hit.right, f"{hit.score:.2f}") for hit in result.hits]
    for place, (image, right, score) in enumerate(hits):
        _draw_image(page, pen, gallery, image, right, score, left + place * (_THUMB + _GAP), top)
    if result.rank > len(hits):
        x = left + len(hits) * (_THUMB + _GAP) + 2 * _GAP
        pen.line((x - 3 * _GAP // 2, top + _HEAD, x - 3 * _GAP // 2, top + _HEAD + _THUMB), LINE, 1)
        pen.text((x, top + 14), f"right one: rank {result.rank}", GREY, font(13))
        _draw_image(page, pen, gallery, result.answer, True, "", x, top)


def _draw_image(
    page: Any, pen: Any, gallery: Gallery, image: int, right: bool, score: str, x: int, top: int
) -> None:
    y = top + _HEAD
    page.paste(gallery.picture(image, _THUMB), (x, y))
    box = (x - 1, y - 1, x + _THUMB, y + _THUMB)
    pen.rectangle(box, outline=RIGHT if right else LINE, width=4 if right else 1)
    if right:
        pen.rectangle((x + _THUMB - 22, y - 1, x + _THUMB, y + 21), fill=RIGHT)
        tick = [(x + _THUMB - 17, y + 10), (x + _THUMB - 12, y + 15), (x + _THUMB - 5, y + 5)]
        pen.line(tick, "white", 3)
    letters = font(13, gallery.name(image))
    words = fit(pen, gallery.name(image), _THUMB + _GAP - 8, letters)
    pen.text((x, y + _THUMB + 5), words, RIGHT if right else INK, letters)
    pen.text((x, y + _THUMB + 22), score, GREY, font(12))


def fit(pen: Any, text: str, width: int, font: Any) -> str:
    """The text, cut with an ellipsis where it is too wide."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def font(size: int, text: str = "") -> Any:
    """Pillow's own font; for text with letters that it lacks, matplotlib's, where that is there."""
    from PIL import ImageFont

    if not text.isascii():
        package = importlib.util.find_spec("matplotlib")
        if package is not None and package.origin is not None:
            letters = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
            if letters.exists():
                return ImageFont.truetype(str(letters), round(0.9 * size))
    return ImageFont.load_default(size)


def save_page(page: Any, path: Path) -> None:
    """Write a page as PNG, atomically."""
    with atomic_file(path) as handle:
        page.save(handle, "PNG")


def draw_sample(part: Part, count: int) -> list[int]:
    """Captions to show, by a fixed seed: chosen before anything is known of them."""
    count = min(count, len(part.captions))
    rng = np.random.default_rng(12)
    chosen: list[int] = rng.choice(len(part.captions), count, replace=False).tolist()
    return chosen


def draw_results(
    scores: Similarities,
    part: Part,
    gallery: Gallery,
    path: Path,
    *,
    vocabulary: Vocabulary,
    queries: int = 12,
    title: str = "Search results",
    beside: tuple[str, Similarities, Vocabulary] | None = None,
) -> list[Search]:
    """Draw the results of some captions (:func:`draw_sample`), of one run or of two.

    Args:
        scores: of N images with C captions.
        part: names the captions and their owners.
        gallery: their pictures.
        path: PNG to write.
        vocabulary: the words of training.
        queries: captions to show.
        title: of the page, or of the first run.
        beside: title, scores and vocabulary of a second run, drawn to the right of the first.

    Returns:
        What was drawn, the second run's searches after the first's.
    """
    chosen = draw_sample(part, queries)
    searches = search(scores, part, chosen, vocabulary)
    note = (
        f"{len(chosen)} of {len(part.captions):,} held-out captions, drawn at random, searched "
        f"among {len(part.rows):,} held-out images. Green: right. Numbers: similarity."
    )
    heads = None
    if beside is not None:
        other, other_scores, other_vocabulary = beside
        searches += search(other_scores, part, chosen, other_vocabulary)
        heads = title, other
        title = "Search results of two runs"
    save_page(results_page(searches, gallery, title, note, heads), path)
    return searches
