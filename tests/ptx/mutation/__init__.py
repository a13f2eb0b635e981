"""Faults put into compiled kernels, one at a time: does the suite notice them?

``python -m tests.ptx.mutation`` makes records/ptx/mutations.jsonl again: 360 faults, drawn from a
fixed seed, in the kernels of twelve problems of ``tests.ptx.kernels`` on two architectures.
"""
