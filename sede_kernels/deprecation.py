"""What is deprecated, until which version it stays, and the warning that says so.

A public name, keyword, flag or key that is to go first gets an entry here, and warns for at least
one minor version. CONTRIBUTING.md has the policy.
"""

import warnings
from typing import NamedTuple


class Deprecation(NamedTuple):
    """One name on its way out.

    Attributes:
        name: what users write.
        instead: what they shall write.
        since: the version that warns first.
        gone_in: the version that no longer has it, a later minor or major one.
    """

    name: str
    instead: str
    since: str
    gone_in: str


#: All of them; a test fails once the package's version is one's ``gone_in``.
DEPRECATED = (
    Deprecation(
        "sede_kernels.backends.triton.report",
        "sede_kernels.backends.triton.compile_report",
        since="0.2",
        gone_in="0.3",
    ),
    Deprecation(
        "sede_kernels.training.cli",
        "sede_kernels.cli",
        since="0.2",
        gone_in="0.3",
    ),
)


def warn_deprecated(name: str, *, stacklevel: int = 2) -> None:
    """Warn in one sentence that a name of ``DEPRECATED`` goes away.

    Args:
        name: the entry's name.
        stacklevel: whose line the warning names, as in ``warnings.warn``: 1 is the caller, 2 the
            caller's caller, who wrote the name.

    Raises:
        KeyError: there is no such entry.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_deprecated("sede_kernels.backends.triton.report")
        >>> print(caught[0].message)  # doctest: +NORMALIZE_WHITESPACE
        sede_kernels.backends.triton.report is deprecated since 0.2 and gone in 0.3: use
        sede_kernels.backends.triton.compile_report.
    """
    found = {entry.name: entry for entry in DEPRECATED}[name]
    warnings.warn(
        f"{found.name} is deprecated since {found.since} and gone in {found.gone_in}: "
        f"use {found.instead}.",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )
