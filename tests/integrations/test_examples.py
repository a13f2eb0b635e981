"""Every example runs, and every name in the documentation's recipes is there."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: That of many processes runs in tests/distributed.
EXAMPLES = sorted(
    set((ROOT / "examples").glob("train_*.py")) - {ROOT / "examples/train_distributed.py"}
)
RECIPES = (ROOT / "docs" / "integrations.md").read_text()
IMPORTS = re.findall(r"^\+from (sede_kernels\.integrations\.\w+) import (.+)$", RECIPES, re.M)
HOSTS = {
    "train_open_clip": "open_clip",
    "train_sentence_transformers": "sentence_transformers",
    "train_metric_learning": "metric_learning",
    "train_lightly": "lightly_loss",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(
    path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem in HOSTS:
        request.getfixturevalue(HOSTS[path.stem])  # skips where the host is not installed
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("module", "names"), IMPORTS, ids=lambda value: value.rpartition(".")[2])
def test_recipe_names_are_there(module: str, names: str, request: pytest.FixtureRequest) -> None:
    if module.endswith(".transformers"):
        pytest.importorskip("transformers", reason="pip install transformers")
    if module.endswith("sentence_transformers_cached"):
        request.getfixturevalue("sentence_transformers")
    if module.endswith("metric_learning"):
        request.getfixturevalue("metric_learning")
    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name.partition(" as ")[0]) for name in names.split(", "))


def test_every_drop_in_is_documented() -> None:
    folder = ROOT / "sede_kernels" / "integrations"
    modules = [path.stem for path in folder.glob("[a-z]*.py")]
    assert len(modules) == 16
    for name in modules:
        assert f"`{name}`" in RECIPES, name
    for path in EXAMPLES:
        assert f"`{path.name}`" in RECIPES, path.name


def test_the_first_hour_draws_its_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = ROOT / "examples" / "first_hour.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert "first" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    page = (ROOT / "docs" / "first_hour.md").read_text()
    for name in set(re.findall(r"`(\w+)`", page.split("| curve |")[1])):
        assert any(tag.endswith(f"/{name}") for tag in events.Tags()["scalars"]), name
    ranks = [event.value for event in events.Scalars("bank/image_to_text/rank")]
    assert min(ranks[-3:]) < max(ranks[:3])  # it learns
    assert [event.value for event in events.Scalars("bank/image_bank/fill")][-1] == 1.0


@pytest.mark.parametrize("ranks", [1, 2])
def test_momentum_encoders_of_all_ranks_agree(ranks: int, tmp_path: Path) -> None:
    path = str(ROOT / "examples" / "momentum.py")
    launch = [sys.executable, path]
    if ranks > 1:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                  f"--nproc-per-node={ranks}", path]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        launch, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"step \d  loss ([\d.]+)", done.stdout)
    assert len(losses) == 8 and float(losses[-1]) < float(losses[0])
    assert done.stdout.count("agree: True") == (ranks if ranks > 1 else 0)


def test_there_is_an_example_for_every_host() -> None:
    names = {path.stem.removeprefix("train_") for path in EXAMPLES}
    assert names >= {"scan", "vsepp", "moco", "albef", *(h.removeprefix("train_") for h in HOSTS)}
