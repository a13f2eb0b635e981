"""``sede eval``: score a run, and another beside it, on one part; draw what they find."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sede_kernels.training.attention_page import draw_attention, shown_images
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.data.precomp import Part
from sede_kernels.training.data.text import Vocabulary
from sede_kernels.training.evaluate import (
    Retrieval,
    chance,
    check_folds,
    summarize,
    table,
)
from sede_kernels.training.files import UserError, write_json
from sede_kernels.training.gallery import Gallery, open_gallery
from sede_kernels.training.limits import check_backend, enough_memory
from sede_kernels.training.models import RetrievalModel
from sede_kernels.training.pictures import draw_results
from sede_kernels.training.ranks import here
from sede_kernels.training.run import Corpus, load_best, load_corpus
from sede_kernels.training.similarities import Similarities, compare_part


@dataclass(frozen=True)
class Scored:
    """A run with the part that it is scored on, in its own vocabulary."""

    config: TrainConfig
    model: RetrievalModel
    vocabulary: Vocabulary
    corpus: Corpus
    part: Part
    words: list[list[int]]

    def scores(self) -> Similarities:
        """Similarity of every image with every caption."""
        ranks = here()
        return compare_part(
            self.model, self.part, self.words, progress=ranks.first, group=ranks.group
        )


def evaluate(
    run: Path,
    *,
    data: str | None = None,
    part: str = "test",
    folds: int = 1,
    page: Path | None = None,
    beside: Path | None = None,
    json_only: bool = False,
    ranks: Path | None = None,
    images: Path | None = None,
) -> None:
    """Print the table of a run, and draw pages of what it finds and attends to.

    All is checked before anything is scored. Processes that ``torchrun`` started share the work.

    Args:
        run: its folder.
        data: another data set than the run's.
        part: name of the part.
        folds: means of so many folds.
        page: PNG of search results; the attention goes beside it.
        beside: a second run, on the same part.
        json_only: print the figures as JSON, and everything else on stderr.
        ranks: a file for the rank of each query, from 1.
        images: folder of the pictures of a feature folder, for the page.

    Raises:
        UserError: a run is damaged, does not fit the data, or there is nothing to draw.
    """
    if json_only:
        with redirect_stdout(sys.stderr):
            rows = _evaluate(run, data, part, folds, page, beside, ranks, images)
        print(json.dumps(rows, indent=1))
    else:
        _evaluate(run, data, part, folds, page, beside, ranks, images)


def _evaluate(
    run: Path,
    data: str | None,
    part: str,
    folds: int,
    page: Path | None,
    beside: Path | None,
    ranks_file: Path | None,
    images: Path | None,
) -> dict[str, Any]:
    """The same; returns the figures of each run."""
    check_backend()
    if page is not None:
        check_page(page)
    elif images is not None:
        raise UserError("--images is for the page of --visualize: add --visualize PNG.")
    if ranks_file is not None:
        check_ranks(ranks_file)
    one = _open(run, data, part)
    same = one.config.data if data is None else data
    other = None if beside is None else _open(beside, same, part)
    check_folds(len(one.part.rows), folds)
    gallery: Gallery | None = None
    if page is not None:  # says what is missing
        gallery = open_gallery(one.corpus.folder, part, one.part, images, shown_images(one.part))
    with enough_memory():
        scores = one.scores()
        title = one.config.title
        ranks = here()
        rows = {title: summarize(scores, one.part.pairs, folds, group=ranks.group)}
        second = None
        if other is not None:
            found = other.scores()
            name = other.config.title + (" (beside)" if other.config.title in rows else "")
            rows[name] = summarize(found, one.part.pairs, folds, group=ranks.group)
            second = name, found, other.vocabulary
    if not ranks.first:  # the first of several processes prints and writes
        return {}
    shown = _print(one, rows, folds)
    if ranks_file is not None:
        write_json(ranks_file, _ranks(scores, one.part))
        print(f"Ranks: {ranks_file}")
    if page is not None and gallery is not None:
        draw_results(
            scores,
            one.part,
            gallery,
            page,
            vocabulary=one.vocabulary,
            title=title,
            beside=second,
        )
        print(f"Search results: {page}")
        maps = page.with_stem(f"{page.stem}_attention")
        heading = f"Attention of {title}"
        said = draw_attention(one.model, one.part, one.words, gallery, maps, title=heading)
        print(said or f"Attention over regions: {maps}")
    return {name: row.as_dict() for name, row in shown.items()}


def _ranks(scores: Similarities, part: Part) -> dict[str, list[int]]:
    """Rank from 1 of the best right answer of every image and caption that asked."""
    found = scores.ranks(part.pairs)
    return {
        "images": np.unique(part.pairs[:, 1]).tolist(),
        "image_ranks": (found[0] + 1).tolist(),
        "captions": np.unique(part.pairs[:, 0]).tolist(),
        "caption_ranks": (found[1] + 1).tolist(),
    }


def check_ranks(path: Path) -> None:
    """Refuse a name under which no file can be written, before anything is scored.

    Raises:
        UserError: empty, a folder, or in a folder that is not there.
    """
    if not path.name or path.is_dir() or not path.parent.is_dir():
        raise UserError(
            f"--ranks takes the name of a JSON file in a folder that is there, got {str(path)!r}."
        )


def check_page(page: Path) -> None:
    """Refuse a name under which no picture can be written, before anything is scored.

    Raises:
        UserError: empty, or a folder.
    """
    if not page.name or page.is_dir():
        raise UserError(
            f"--visualize takes the name of a PNG file, got the folder {str(page)!r}: "
            "add a name to it."
        )


def _open(run: Path, data: str | None, name: str) -> Scored:
    """A run and the part, checked against each other."""
    config, model, vocabulary = load_best(run)
    data = config.data if data is None else data
    corpus = load_corpus(data, (name,), vocabulary, config.text_embeddings)
    part = corpus.parts[name]
    width = int(part.features.shape[2])
    if width != model.features:
        raise UserError(
            f"{run} expects regions of {model.features} numbers, {corpus.folder} has {width}."
        )
    sentences = 0 if part.sentences is None else int(part.sentences.shape[1])
    if sentences != model.sizes.sentence:
        raise UserError(
            f"{run} expects sentence embeddings of {model.sizes.sentence} numbers, "
            f"{corpus.folder} has {sentences}."
        )
    return Scored(config, model, vocabulary, corpus, part, corpus.words[name])


def _print(one: Scored, rows: dict[str, Retrieval], folds: int) -> dict[str, Retrieval]:
    """Show the table; returns its rows, chance included."""
    part = one.part
    images, captions = len(part.rows), len(part.captions)
    if folds == 1:  # the chance of the whole part is not that of a fold
        rows = {"chance": chance(images, captions, part.pairs), **rows}
    name = part.name.rpartition("/")[2]
    print(f"{one.corpus.folder} {name}: {images:,} images, {captions:,} captions")
    print(table(rows))
    return rows
