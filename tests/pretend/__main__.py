"""`renderkiln`, whose renderers pretend."""

import sys

from .worker import run_command, start_renderers_as

if __name__ == "__main__":
    start_renderers_as("tests.pretend.engine")
    run_command(sys.argv[1:])
