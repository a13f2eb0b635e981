"""The former name of :mod:`sede_kernels.backends.triton.compile_report`, for one release."""

import sys

from sede_kernels.backends.triton.compile_report import report
from sede_kernels.backends.triton.compile_report.report import main

if __name__ == "__main__":
    sys.exit(main())
else:
    sys.modules[__name__] = report
