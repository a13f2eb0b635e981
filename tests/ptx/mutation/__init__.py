"""Faults put into compiled kernels, one at a time: does the suite notice them?

``python -m tests.ptx.mutation`` makes records/ptx/mutations.jsonl again: 300 faults, drawn from a
fixed seed, in the kernels of ten problems of ``tests.ptx.kernels`` on two architectures.
"""
