"""Which version of a host an extra of pyproject.toml allows, for ``.ci/host-matrix``.

python -m tests.integrations.host_versions oldest|newest EXTRA

Prints what pip installs: the lower bound itself, or the whole range, of which pip takes the newest.
"""

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
EXTRAS = (
    "open-clip",
    "sentence-transformers",
    "metric-learning",
    "lightly",
    "transformers",
    "lightning",
    "accelerate",
)


def requirement(versions: str, extra: str) -> str:
    """``name==oldest``, or ``name>=oldest,<bound``."""
    if versions not in ("oldest", "newest") or extra not in EXTRAS:
        raise SystemExit(__doc__)
    line = re.search(rf'^{extra} = \["([^"]+)"\]', PYPROJECT.read_text(), re.MULTILINE)
    assert line is not None, f"{PYPROJECT} has no extra {extra}"
    name, oldest, bound = re.fullmatch(r"([\w-]+)>=([\d.]+),<(\d+)", line[1]).groups()
    return f"{name}=={oldest}" if versions == "oldest" else f"{name}>={oldest},<{bound}"


if __name__ == "__main__":
    print(requirement(*sys.argv[1:3]) if len(sys.argv) == 3 else __doc__)
