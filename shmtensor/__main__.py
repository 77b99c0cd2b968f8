"""``python -m shmtensor``: the command line."""

import sys

from shmtensor.cli import main

if __name__ == "__main__":  # a spawned worker imports this file again and must not start over
    sys.exit(main())
