"""``python -m sede_kernels.backends.triton.compile_report``."""

import sys

from sede_kernels.backends.triton.compile_report.report import main

if __name__ == "__main__":
    sys.exit(main())
