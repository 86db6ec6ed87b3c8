"""`python -m enlarger` is the command `enlarger`."""

import sys

from enlarger.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
