"""`python -m ditscope`, the same as the `ditscope` command."""

import sys

from ditscope.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
