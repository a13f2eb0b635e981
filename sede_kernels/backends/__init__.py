"""Backends: one package each, with the same file and function names as ``sede_kernels.ops``."""
