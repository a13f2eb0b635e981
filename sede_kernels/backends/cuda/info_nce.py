"""The weighted InfoNCE around the passes of this backend."""

from sede_kernels.backends._info_nce import Passes, around
from sede_kernels.backends.cuda.bank_lse import bank_lse, bank_lse_pair
from sede_kernels.backends.cuda.batch_lse import batch_lse, batch_lse_backward, batch_lse_kept

info_nce, info_nce_backward = around(
    Passes(bank_lse, bank_lse_pair, batch_lse, batch_lse_backward, batch_lse_kept)
)
