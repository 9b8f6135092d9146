"""``python -m potstill``, the same as the command ``potstill``."""

import sys

from potstill.app.entry import main

sys.exit(main())
