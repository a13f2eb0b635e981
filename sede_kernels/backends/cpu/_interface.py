"""Whether the native module was built from the sources that this package was written for.

The module carries a digest of the files that say how Python calls it, and the version of the
package. In a checkout the digest of those files is taken anew, so that a module from before a
``git pull`` is noticed. An installed package has no sources beside it: there the version decides.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parents[2]


def sources(root: Path) -> list[Path]:
    """Files of a checkout that say how Python calls the module; CMakeLists.txt takes the same."""
    csrc = root / "csrc"
    bindings = [path for path in csrc.glob("bind_*") if "bind_cuda" not in path.name]
    return sorted([*bindings, *csrc.glob("kernels/*api.h")])


def digest(files: list[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, in hex."""
    each = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _version() -> str | None:
    """Version of the installed package, where that is this one and not a source folder."""
    try:
        found = distribution("sede-kernels")
    except PackageNotFoundError:
        return None
    here = Path(str(found.locate_file(_PACKAGE.name))).resolve() == _PACKAGE
    return found.version if here else None


def mismatch(module: ModuleType) -> str | None:
    """Why a loaded module cannot serve this package, in one clause with the remedy, or None.

    Cost: in a checkout, reading and hashing some 40 kB once in each process.
    """
    built = getattr(module, "interface", None)
    root = _PACKAGE.parent
    files = sources(root)
    if files:
        if built == digest(files):
            return None
        remedy = f"rebuild it by `pip install -e .` in {root}"
    else:
        version = _version()
        if built is not None and version in (None, getattr(module, "version", None)):
            return None
        remedy = "install the package again by `pip install --force-reinstall sede-kernels`"
    return f"the native module {module.__file__} was built from other sources: {remedy}"
