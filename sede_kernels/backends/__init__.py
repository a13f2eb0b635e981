"""Backends: one package each, with the same file and function names as ``sede_kernels.ops``."""

# Here, because its hooks must be in place before the first fork.
from sede_kernels.backends import fork as fork
