"""Benchmarks that check every result against fp64 before they time it; see README.md here.

The wheel holds this folder as ``sede_kernels._bench``. In a clone it is ``benchmarks``, and
``python -m benchmarks.run`` puts the clone first on the search path. The installed package is
measured all the same: it is imported here, as if the clone were not there. Naming the clone in
PYTHONPATH measures the clone.
"""

import importlib
import sys
from pathlib import Path


def _import_the_installed_package() -> None:
    clone = Path(__file__).resolve().parent.parent
    if not sys.path or Path(sys.path[0]).resolve() != clone:
        return
    first = sys.path.pop(0)
    try:
        importlib.import_module("sede_kernels")
    except ModuleNotFoundError as error:
        if error.name != "sede_kernels":
            raise  # nothing is installed otherwise: the clone serves
    finally:
        sys.path.insert(0, first)


_import_the_installed_package()
