"""``python -m nettop``."""

import sys

from nettop.cli import main

if __name__ == "__main__":
    sys.exit(main())
