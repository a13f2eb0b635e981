"""The ``sede`` command."""

import argparse
import importlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sede_kernels import __version__
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.training.files import UserError, data_home, describe_os_error, require

_PACKAGES = {"PIL": "pillow", "tqdm": "tqdm"}
_OF_RUNS = {**_PACKAGES, "tensorboard": "tensorboard"}


def _prepare(arguments: argparse.Namespace) -> int:
    require(_PACKAGES, "`sede prepare`")
    from sede_kernels.training.data.prepare import prepare

    home = data_home() if arguments.home is None else arguments.home
    for folder in prepare(arguments.set, home, limit=arguments.limit):
        print(f"ready: {folder}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    require(_OF_RUNS, "`sede train`")
    from sede_kernels.training import ranks

    with ranks.started():
        return _train_here(arguments)


def _train_here(arguments: argparse.Namespace) -> int:
    from sede_kernels.training import changes, config, loop, ranks
    from sede_kernels.training.evaluate import table

    given = vars(arguments)
    settings = {k: v for k, v in given.items() if k in config.TrainConfig.__dataclass_fields__}
    if arguments.resume is not None:
        if arguments.config or arguments.out:
            raise UserError("--resume goes on in the run's folder: leave out --config and --out.")
        changes.check_flags(settings)
        out = arguments.resume
    else:
        if arguments.config is not None:
            settings = config.read_toml(arguments.config) | settings
        chosen = config.from_mapping(settings, str(arguments.config or "the command line"))
        by_hand = [name for name in given if name in settings]
        config.check_switches(by_hand, chosen, ranks.here().world)
        name = f"{Path(chosen.data).name}-{chosen.title}-seed{chosen.seed}"
        out = arguments.out or data_home() / "runs" / name
    again = f"sede train --resume {shlex.quote(str(out))}"
    try:
        if arguments.resume is not None:
            result = loop.resume(out, settings)
        else:
            result = loop.train(chosen, out)
    except loop.StoppedError:
        print(f"\nStopped; nothing is lost: go on with `{again}`.")
        return 130
    except (KeyboardInterrupt, OSError) as error:
        if not (out / "config.json").exists():  # nothing was kept, so the same command may go again
            raise
        then = f"go on with `{again}`"
        if isinstance(error, KeyboardInterrupt):
            print(f"\nsede: stopped at once: {then}.", file=sys.stderr)
            return 130
        if isinstance(error, BrokenPipeError):
            _drop_output()
            raise UserError(f"whoever read the output is gone: {then}.") from error
        raise UserError(describe_os_error(error, then)) from error
    print(f"\nTest, once, with the epoch that did best on dev:\n\n{table({'test': result})}")
    curves = f"tensorboard --logdir {shlex.quote(str(out))}"
    print(f"\nThe run is in {out}; look at its curves with `{curves}`.")
    return 0


def _drop_output() -> None:
    """What is still to be printed goes nowhere: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _eval(arguments: argparse.Namespace) -> int:
    require(_PACKAGES, "`sede eval`")
    from sede_kernels.training import ranks
    from sede_kernels.training.scoring import evaluate

    with ranks.started():
        evaluate(
            arguments.run,
            data=arguments.data,
            part=arguments.part,
            folds=arguments.folds,
            page=arguments.visualize,
            beside=arguments.beside,
            json_only=arguments.json,
            ranks=arguments.ranks,
            images=arguments.images,
        )
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _ablate(arguments: argparse.Namespace) -> int:
    require({**_OF_RUNS, "matplotlib": "matplotlib"}, "`sede ablate`")
    from sede_kernels.study import ablate
    from sede_kernels.training import config, loop

    given = vars(arguments)
    flags = {k: v for k, v in given.items() if k in config.TrainConfig.__dataclass_fields__}
    study = ablate.Study(
        models=_names(arguments.models),
        variants=_names(arguments.variants),
        seeds=arguments.seeds,
        out=arguments.out or data_home() / "ablation",
        jobs=arguments.jobs,
        trials=arguments.trials,
        settings=arguments.settings,
        flags=flags,
        keep=arguments.keep,
    )
    try:
        if arguments.search:
            ablate.search(study)
            print(f"\nThe choice: {study.out / 'settings.json'} (for --settings)")
        else:
            ablate.ablate(study)
            print(f"\n{(study.out / 'table.md').read_text(encoding='utf-8')}")
            print(f"Records, table and figure: {study.out}")
    except loop.StoppedError:
        print("\nStopped; finished runs are on file: the same command goes on.")
        return 130
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    require(_OF_RUNS, "`sede demo`")
    from sede_kernels.training import demo, loop

    out = arguments.out or data_home() / "demo"
    try:
        demo.demo(
            out,
            limit=demo.LIMIT if arguments.limit is None else arguments.limit,
            epochs=demo.EPOCHS if arguments.epochs is None else arguments.epochs,
        )
    except loop.StoppedError:
        print("\nStopped; nothing is lost: `sede demo` goes on from here.")
        return 130
    return 0


def _bench(rest: Sequence[str]) -> int:
    require({"tqdm": "tqdm"}, "`sede bench`", "bench")
    try:
        suite = importlib.import_module("sede_kernels._bench.run")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("sede_kernels._bench"):
            raise
        raise UserError(
            "the benchmarks come with the installed package, and this one is a source folder: run "
            "`python -m benchmarks.run` from there, or `pip install` it."
        ) from None
    return int(suite.main(list(rest)) or 0)


def _info(rest: Sequence[str]) -> int:
    from sede_kernels.info import main as report

    try:
        return int(report(list(rest)) or 0)
    except ValueError as error:  # SEDE_CPU_ISA
        raise UserError(f"{str(error).rstrip('.')}: choose one of them, or unset it.") from error


# These two have parsers of their own.
_PASSED_ON: dict[str, Callable[[Sequence[str]], int]] = {"bench": _bench, "info": _info}


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def _parser(flags_of: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sede",
        description="Image-text retrieval with memory banks, weighted InfoNCE and "
        "attention-guided erasing. Data and runs go under $SEDE_DATA, or ~/.cache/sede.",
    )
    parser.add_argument("--version", action="version", version=f"sede-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(perform=run)
        return command

    demo = add("demo", _demo, "prepare icons, train twice, compare, and draw search results")
    demo.add_argument("--out", type=_path, help="folder of the runs and the page [data/demo]")
    demo.add_argument("--limit", type=int, help="icons to take [3000]")
    demo.add_argument("--epochs", type=int, help="epochs of each run [12]")

    prepare = add("prepare", _prepare, "make a training set from packages: icons or emoji")
    prepare.add_argument("set", help="icons or emoji")
    prepare.add_argument("--limit", type=int, help="take so many images only [all]")
    prepare.add_argument("--out", dest="home", type=_path, help="data folder [$SEDE_DATA]")

    train = add("train", _train, "train a model; modules: --erase, --bank, --weighting")
    train.add_argument("--config", type=_path, help="settings from a TOML file; flags win")
    train.add_argument("--out", type=_path, help="new folder of the run [data/runs/...]")
    train.add_argument(
        "--resume",
        type=_path,
        metavar="RUN",
        help="go on with a stopped run; --lr and a few others may change",
    )

    ablate = add("ablate", _ablate, "models with each module on and off, over seeds: a table")
    ablate.add_argument("--models", default="scan,bfan,vsrn", help="[scan,bfan,vsrn]")
    ablate.add_argument(
        "--variants", default="base,age,lsns,wil,all", help="[base,age,lsns,wil,all]"
    )
    ablate.add_argument("--seeds", type=int, default=5, help="number of seeds [5]")
    ablate.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each in a process of its own [1]"
    )
    ablate.add_argument("--search", action="store_true", help="choose settings on dev instead")
    ablate.add_argument("--trials", type=int, default=6, help="of a search, each part [6]")
    ablate.add_argument("--settings", type=_path, metavar="JSON", help="what a search chose")
    ablate.add_argument("--keep", type=int, default=1, help="seeds whose run folders stay [1]")
    ablate.add_argument("--out", type=_path, help="records, table, figure [data/ablation]")

    if flags_of in ("train", "ablate"):
        from sede_kernels.training.config import add_flags

        add_flags(train if flags_of == "train" else ablate)

    evaluate = add("eval", _eval, "score a run: R@1/5/10 both ways, rSum, median rank")
    evaluate.add_argument("run", type=_path, help="folder of a run")
    evaluate.add_argument("--data", help="another data set than the run's")
    evaluate.add_argument("--part", default="test", help="train, dev or test [test]")
    evaluate.add_argument("--folds", type=int, default=1, help="mean of so many folds (COCO 1K: 5)")
    evaluate.add_argument(
        "--visualize", type=_path, metavar="PNG", help="draw search results and attention"
    )
    evaluate.add_argument(
        "--images",
        type=_path,
        metavar="FOLDER",
        help="pictures of a feature folder, for --visualize; its <part>_boxes.npy places regions",
    )
    evaluate.add_argument(
        "--beside", type=_path, metavar="RUN2", help="a second run to compare with"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of the table")
    evaluate.add_argument(
        "--ranks", type=_path, metavar="FILE", help="write the rank of each query as JSON"
    )

    add("bench", lambda _: 0, "measure the kernels beside their peers")
    add("info", lambda _: 0, "backends, versions and hardware")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 done, 1 with one sentence on stderr, 2 wrong usage, 130 after Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (`2>&-`): what is said goes nowhere
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (for good)
            setattr(sys, name, nowhere)
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        # A path or a word that the terminal cannot show must not end a run that is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in _PASSED_ON:
            return _PASSED_ON[words[0]](words[1:])
        arguments = _parser(words[0] if words else "").parse_args(words)
        perform: Callable[[argparse.Namespace], int] = arguments.perform
        return perform(arguments)
    except UserError as error:
        print(f"sede: {error}", file=sys.stderr)
    except BackendUnavailableError as error:
        print(f"sede: {' '.join(str(error).split())}", file=sys.stderr)
    except BrokenPipeError:  # `sede eval ... | head`
        _drop_output()
    except OSError as error:
        print(f"sede: {describe_os_error(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nsede: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
