"""The former name of :mod:`sede_kernels.backends.triton.compile_report`."""

import sys

from sede_kernels.backends.triton.compile_report import report
from sede_kernels.backends.triton.compile_report.report import main
from sede_kernels.deprecation import warn_deprecated

NAME = "sede_kernels.backends.triton.report"

if __name__ == "__main__":
    warn_deprecated(NAME, stacklevel=1)  # Python shows such warnings of the main program only
    sys.exit(main())
warn_deprecated(NAME)
sys.modules[__name__] = report
