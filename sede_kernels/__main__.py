"""``python -m sede_kernels``: the same as the command ``sede``."""

import sys

from sede_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
