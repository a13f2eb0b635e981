"""Every kernel and every entry of the launch tables, compiled, executed and held against fp64.

``python -m tests.ptx.kernels --arch sm_90`` runs the first entry of every row, ``--every`` all of
them; ``--write records/ptx`` keeps what came out. docs/ptx.md has the commands.
"""
