"""What ``.ci/host-matrix`` installs is what the page of hosts states."""

import re
from pathlib import Path

import pytest

from .host_versions import EXTRAS, requirement

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text()


@pytest.mark.parametrize("extra", EXTRAS)
def test_bounds_and_the_installed_version(extra):
    """The pinned host lies in the range of its extra, and the page names its upper bound."""
    name, oldest = requirement("oldest", extra).split("==")
    bound = requirement("newest", extra).rpartition("<")[2]
    assert requirement("newest", extra) == f"{name}>={oldest},<{bound}"
    pins = (ROOT / "tests" / "integrations" / "install_hosts.sh").read_text()
    pinned = re.search(rf"\b{name}==([\d.]+)", pins)[1]
    numbers = [tuple(map(int, version.split("."))) for version in (oldest, pinned, bound)]
    assert numbers[0] <= numbers[1] < numbers[2]
    assert f"{name} {bound}" in " ".join(PAGE.split()), "the upper bound is on the page"
    assert f"{name} {oldest}" in PAGE.partition("## Oldest and newest")[2]


def test_other_words_are_refused():
    with pytest.raises(SystemExit):
        requirement("middle", "lightly")
    with pytest.raises(SystemExit):
        requirement("oldest", "torch")


def test_the_workflow_runs_both():
    words = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "versions: [oldest, newest]" in words
    assert "bash .ci/host-matrix ${{ matrix.versions }}" in words
