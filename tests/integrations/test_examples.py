"""Every example runs, and every name in the documentation's recipes is there."""

import importlib
import re
import runpy
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
        assert f".{name}`" in RECIPES, name
    for path in EXAMPLES:
        assert f"`examples/{path.name}`" in RECIPES, path.name


def test_there_is_an_example_for_every_host() -> None:
    names = {path.stem.removeprefix("train_") for path in EXAMPLES}
    assert names >= {"scan", "vsepp", "moco", "albef", *(h.removeprefix("train_") for h in HOSTS)}
