"""python -m cat_seg: the same as the command cat-seg."""

import sys

from cat_seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
