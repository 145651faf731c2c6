"""``python -m layerroute``: the command line."""

import sys

from layerroute.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
