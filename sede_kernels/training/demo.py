"""``sede demo``: real icons, a model without and with the three modules, and what they find."""

import time
from dataclasses import replace
from pathlib import Path

from sede_kernels.training.config import TrainConfig
from sede_kernels.training.data.prepare import check_limit, prepare
from sede_kernels.training.evaluate import Retrieval, chance, table
from sede_kernels.training.files import data_home, require
from sede_kernels.training.folder import guard, make_room, remove
from sede_kernels.training.gallery import open_gallery
from sede_kernels.training.lock import hold
from sede_kernels.training.loop import resume, train
from sede_kernels.training.pictures import draw_results
from sede_kernels.training.run import load_best, load_corpus, read_config
from sede_kernels.training.similarities import compare_part

LIMIT = 3000  # icons; the features are most of the time the command takes
EPOCHS = 12


def settings(limit: int, epochs: int) -> dict[str, TrainConfig]:
    """The two runs: one base, and the same with erasing, banks and weighting.

    Chosen on dev. One thread gives the same scores whatever the number of cores, and little else
    is lost: the model is small.
    """
    base = TrainConfig(data=f"icons_{limit}", epochs=epochs, batch_size=64, lr=3e-3, threads=1)
    modules = replace(
        base,
        erase="high",
        erase_pass="second",
        bank=2048,
        weighting=5.0,
    )
    return {"base": base, "three modules": modules}


def demo(out: Path, *, limit: int = LIMIT, epochs: int = EPOCHS) -> None:
    """Prepare, train twice, compare, draw.

    What a killed demo had finished is kept: features by their cache, runs by their checkpoints.

    Args:
        out: folder of the runs and the page.
        limit: icons to take.
        epochs: of each run.
    """
    require({"PIL": "pillow", "tensorboard": "tensorboard"}, "`sede demo`")
    started = time.perf_counter()
    runs = settings(limit, epochs)
    check_limit(limit)
    folders = {name: out / name.replace(" ", "_") for name in runs}
    with hold(out, "sede demo"):
        for name, config in runs.items():
            _check_folder(folders[name], config)
        print(f"1/3  Drawing {limit:,} icons and computing their features (cached for next time).")
        prepare("icons", data_home(), limit=limit)
        print("\n2/3  Training a small model twice: without and with erasing, banks and weighting.")
        results = {name: _train(runs[name], folders[name]) for name in runs}
        print("\n3/3  Searching icons that were not in training.")
        _report(results, runs, folders, out, time.perf_counter() - started)


def _check_folder(folder: Path, config: TrainConfig) -> None:
    """Refuse a folder with a damaged run, or with somebody else's config.json, before any work."""
    if (folder / "config.json").exists():
        read_config(folder)
    else:
        make_room(folder)


def _train(config: TrainConfig, folder: Path) -> tuple[Retrieval, float]:
    """Train, or go on with a run of the same settings; test scores and seconds."""
    started = time.perf_counter()
    if (folder / "config.json").exists():
        if read_config(folder) == config:
            print(f"{folder} has this run already; going on with it.")
            return resume(folder), time.perf_counter() - started
        with guard(folder, "sede demo"):
            remove(folder)
    return train(config, folder), time.perf_counter() - started


def _report(
    results: dict[str, tuple[Retrieval, float]],
    runs: dict[str, TrainConfig],
    folders: dict[str, Path],
    out: Path,
    seconds: float,
) -> None:
    """Print the table, say plainly what the modules did, draw the page, and what comes next."""
    _, model, vocabulary = load_best(folders["three modules"])
    data = runs["base"].data
    corpus = load_corpus(data, ("test",), vocabulary)
    part = corpus.parts["test"]
    rows = {"chance": chance(len(part.rows), len(part.captions), part.pairs)}
    rows |= {name: result for name, (result, _) in results.items()}
    print(f"Test: {len(part.rows):,} icons, {len(part.captions):,} names, recall in percent.\n")
    print(table(rows))
    times = ", ".join(f"{name} {spent:.0f} s" for name, (_, spent) in results.items())
    gain = results["three modules"][0].rsum - results["base"][0].rsum
    verdict = "helped" if gain > 0 else "did not help"
    print(
        f"\nSame seed, same {runs['base'].epochs} epochs (training time: {times}). The three "
        f"modules {verdict} here: rSum {gain:+.1f}.\nOne seed on a part of the icons proves "
        "nothing; differences of a few points come and go with the seed."
    )
    page = out / "search_results.png"
    scores = compare_part(model, part, corpus.words["test"])
    title = f"Icon search with the three modules, {runs['base'].epochs} epochs"
    gallery = open_gallery(corpus.folder, "test", part)
    draw_results(scores, part, gallery, page, vocabulary=vocabulary, title=title)
    print(
        f"""
Search results (pictures): {page}
Runs, curves, checkpoints: {out}
Data and feature cache:    {data_home()}
The whole took {seconds:.0f} s.

What next:
  sede prepare icons && sede train --data icons --erase --bank --weighting   (all 7,272 icons)
  sede eval {folders["three modules"]} --visualize page.png
  sede train --help"""
    )
