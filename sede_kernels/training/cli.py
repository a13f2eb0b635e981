"""The former name of :mod:`sede_kernels.cli`."""

import sys

from sede_kernels import cli
from sede_kernels.deprecation import warn_deprecated

NAME = "sede_kernels.training.cli"

if __name__ == "__main__":
    warn_deprecated(NAME, stacklevel=1)  # Python shows such warnings of the main program only
    sys.exit(cli.main())
warn_deprecated(NAME)
sys.modules[__name__] = cli
