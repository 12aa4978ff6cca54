"""``python -m boltzgen`` is the same as the command ``boltzgen``."""

import sys

from boltzgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
