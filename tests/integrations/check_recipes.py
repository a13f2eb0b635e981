"""Applies the recipes of docs/integrations.md to clones of the hosts and runs a few steps of each.

``python -m tests.integrations.check_recipes CLONE [CLONE...]`` on git clones (bare ones too) of the
repositories in ``FILES``, whose folder or parent folder has the name of the repository. Of each it
takes the newest commit that has the files, and runs the host as it is, with the recipe and no bank
(every loss must be the host's) and with the recipe as it stands (finite losses, and a resumed run
that equals the uninterrupted one bit for bit). Prints one row of the table in the docs a clone.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sede_kernels
from tests.integrations import recipes

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # fp32 queues beside fp64 models, and MoCo's five printed digits

#: Repository -> its files, or folders of them, that a run needs.
FILES = {
    "SCAN": ["model.py"],
    "BFAN": ["model.py"],
    "SGRAF": ["model.py"],
    "vsepp": ["model.py"],
    "ALBEF": ["models/model_retrieval.py"],
    "BLIP": ["models/blip_retrieval.py"],
    "moco": ["main_moco.py", "moco/builder.py", "moco/loader.py"],
    "open_clip": ["src"],
}
#: Repository -> the runs of ``host_steps`` that go through its recipe.
RUNS = {
    **{name: [name] for name in FILES},
    "ALBEF": ["ALBEF", "ALBEF-no-distillation"],
    "BLIP": ["BLIP", "BLIP-one-rank"],
}
#: Repository -> its recipe in the docs, where the name is another, and the folder it is for.
RECIPES = {"open_clip": ("open_clip-4", "src")}
#: What code of 2017 to 2020 needs on today's torch and on a CPU; no line of a recipe is touched.
TODAY = (
    (r"(\w+)\.data\[0\]", r"\1.item()"),
    (r"if torch\.cuda\.is_available\(\):\n\s+I = mask\.cuda\(\)", "I = mask"),
    (r"\.cuda\(\)", ""),
    (r", volatile=volatile\)", ")"),
    (r"import clip_grad_norm$", "import clip_grad_norm_ as clip_grad_norm"),
    (r"size\(2\) ?/ ?2", "size(2) // 2"),
    (r"correct\[:k\]\.view\(-1\)", "correct[:k].reshape(-1)"),
    (r"deeplearning\.cross_image_ssl\.", ""),
)


class Result(NamedTuple):
    """What a clone did.

    Attributes:
        commit: that was taken, and its date.
        difference: the largest relative one between the host's losses and ours without a bank.
        resumed: whether a resumed run was the uninterrupted one.
    """

    commit: str
    date: str
    difference: float
    resumed: bool


def git(clone: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(clone), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def newest(clone: Path, files: Sequence[str]) -> tuple[str, str]:
    """The newest commit of the branch that has these files, and its date."""
    for line in git(clone, "log", "-200", "--format=%H %cs").splitlines():
        commit, date = line.split()
        try:
            for file in files:
                git(clone, "cat-file", "-e", f"{commit}:{file}")
        except subprocess.CalledProcessError:
            continue
        return commit, date
    raise SystemExit(f"{clone}: no commit of the branch has {', '.join(files)}.")


def export(clone: Path, commit: str, files: Sequence[str], folder: Path) -> None:
    command = ["git", "-C", str(clone), "archive", commit, *files]
    packed = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def modernise(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for pattern, new in TODAY:
            text = re.sub(pattern, new, text, flags=re.M)
        path.write_text(text)


def steps(name: str, folder: Path) -> dict[str, object]:
    """What ``host_steps`` prints, or ``open_clip_steps``."""
    module, *which = ["open_clip_steps"] if name == "open_clip" else ["host_steps", name]
    command = [sys.executable, "-W", "ignore", "-m", f"tests.integrations.{module}", *which]
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} in {folder} failed:\n{done.stderr[-3000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def relative(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(first, second, strict=True))


def check(name: str, clone: Path, folder: Path) -> Result:
    """Three runs of the host; raises where one is not as it should be."""
    commit, date = newest(clone, FILES[name])
    recipe, under = RECIPES.get(name, (name, "."))
    places = {kind: folder / kind / under for kind in ("host", "empty", "banked")}
    for kind, place in places.items():
        export(clone, commit, FILES[name], folder / kind)
        if kind != "host":
            recipes.apply(place, recipes.documented()[recipe])
        if kind == "empty":
            for path in place.rglob("*.py"):
                text = re.sub(r"bank_size=\d+", "bank_size=0", path.read_text())
                path.write_text(re.sub(r"hardness=[\d.]+", "hardness=0.0", text))
        if name not in RECIPES:
            modernise(place)
    worst, resumed = 0.0, True
    for run in RUNS[name]:
        host, empty, banked = (steps(run, place) for place in places.values())
        # Queues of the hosts' own cannot be left out: both are full after two steps.
        first = 0 if "bank_size" in _recipe_text(recipe) else 2
        worst = max(worst, relative(host["losses"][first:], empty["losses"][first:]))
        if not all(abs(loss) < 1e6 for loss in banked["losses"]):
            raise SystemExit(f"{run}: the losses with a bank are {banked['losses']}.")
        if first == 0 and banked["losses"][1:] == empty["losses"][1:]:
            raise SystemExit(f"{run}: the bank changes no loss.")
        resumed = resumed and bool(banked["resumed"])
    if worst > TOLERANCE:
        raise SystemExit(f"{name}: losses differ by {worst:.1e} of the host's.")
    return Result(commit, date, worst, resumed)


def _recipe_text(name: str) -> str:
    return "\n".join(line for hunk in recipes.documented()[name] for line in hunk.new)


def repository(clone: Path) -> str:
    """Which of ``FILES`` a path is a clone of."""
    for part in reversed(clone.resolve().parts):
        for name in FILES:
            if part.removesuffix(".git").rpartition("+")[2] == name:
                return name
    raise SystemExit(f"{clone}: must lie in a folder named as one of {', '.join(FILES)}.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clones", nargs="+", type=Path, metavar="CLONE")
    print(f"sede-kernels {sede_kernels.__version__}")
    for clone in parser.parse_args(arguments).clones:
        name = repository(clone)
        folder = Path(tempfile.mkdtemp(prefix=f"recipe-{name}-"))
        result = check(name, clone, folder)
        equal = "yes" if result.resumed else "NO"
        row = (name, result.commit[:12], result.date, f"{result.difference:.0e}", equal)
        print("| " + " | ".join(row) + " |", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
