"""``python -m selfsame`` is the command line."""

import sys

from selfsame.cli import main

if __name__ == "__main__":
    sys.exit(main())
