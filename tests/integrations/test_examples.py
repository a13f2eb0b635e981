"""Every example runs as its page in the documentation says."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("train_*.py"))
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


def test_there_is_an_example_for_every_host() -> None:
    names = {path.stem.removeprefix("train_") for path in EXAMPLES}
    assert names >= {"scan", "vsepp", "moco", "albef", *(h.removeprefix("train_") for h in HOSTS)}
