"""Settings of Sphinx for this folder: `make docs`."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_sphinx"))
PYPROJECT = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")


def _field(name: str) -> str:
    """A text of pyproject.toml."""
    found = re.search(rf'^{name} = "(.*)"$', PYPROJECT, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pyproject.toml has no line `{name} = ...`")
    return found[1]


project = "sede-kernels"
author = copyright = "The sede-kernels authors"
release = version = _field("version")
repository_url = _field("Repository")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
    "left_over",
    "repository_links",
]
exclude_patterns = ["_build", "_sphinx"]
templates_path: list[str] = []
html_theme = "furo"
html_title = f"sede-kernels {release}"
html_show_copyright = False

myst_heading_anchors = 4
highlight_language = "none"  # a block without a language is for a shell, or output

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which annotations lack
# A page of the API needs no host: with them installed or not, it is the same.
autodoc_mock_imports = [
    "accelerate",
    "lightly",
    "lightning",
    "open_clip",
    "pytorch_lightning",
    "pytorch_metric_learning",
    "sentence_transformers",
    "torchvision",
    "transformers",
]
napoleon_custom_sections = [("Cost", "notes_style"), ("Gradients", "notes_style"), "Source"]
napoleon_use_rtype = False
napoleon_use_ivar = True  # else the fields of a tuple are described twice

# A prompt is no part of what is copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
