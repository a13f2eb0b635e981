"""Profiles of the fuzz: ``SEDE_FUZZ=quick`` (the default), ``ci``, or ``long``.

``pytest -m fuzz tests/property`` runs ``long``, with fresh seeds each time; the other two draw the
same cases in every run. With ``TRITON_INTERPRET=1`` the Triton kernels are tested, on fewer and
smaller cases.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.property import cases

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
EXAMPLES = {"quick": 25, "ci": 250, "long": 20_000}
if cases.INTERPRETING:
    EXAMPLES = {"quick": 8, "ci": 8, "long": 300}
for name, examples in EXAMPLES.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=name != "long",
        database=None,
        suppress_health_check=SLOW,
        print_blob=True,
    )


def pytest_configure(config: pytest.Config) -> None:
    asked = "long" if config.getoption("markexpr") == "fuzz" else "quick"
    settings.load_profile(os.environ.get("SEDE_FUZZ", asked))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/property/" in item.path.as_posix():
            item.add_marker(pytest.mark.fuzz)
