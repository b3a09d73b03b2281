"""`python -m cvt` is `cvt`."""

import sys

from cvt.cli import main

sys.exit(main())
