# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Where the kernels of the weighted InfoNCE keep what: rows of the table, places of the numbers."""

import triton.language as tl

from sede_kernels.types import TABLE

TABLE_ROWS = tl.constexpr(len(TABLE))
AT_LOSS = tl.constexpr(TABLE.index("loss"))
AT_WEIGHT = tl.constexpr(TABLE.index("weight"))
AT_POSITIVE = tl.constexpr(TABLE.index("positive"))
AT_LOG_NEGATIVES = tl.constexpr(TABLE.index("log_negatives"))
AT_HARDEST = tl.constexpr(TABLE.index("hardest"))
AT_POSITIVE_GRAD = tl.constexpr(TABLE.index("positive_grad"))
AT_TEMPERATURE_GRAD = tl.constexpr(TABLE.index("temperature_grad"))
AT_HARDNESS_GRAD = tl.constexpr(TABLE.index("hardness_grad"))
AT_LSE = tl.constexpr(TABLE.index("lse"))
AT_LSE_GRAD = tl.constexpr(TABLE.index("lse_grad"))
AT_EXTRA_LSE = tl.constexpr(TABLE.index("extra_lse"))
AT_EXTRA_GRAD = tl.constexpr(TABLE.index("extra_grad"))
#: Where ``numbers`` has the exponents of further positives, and beta; those of the passes lead.
EXTRA_AT = tl.constexpr(4)
BETA_AT = tl.constexpr(6)
