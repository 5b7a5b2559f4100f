"""``python -m foremoe`` is the ``foremoe`` command."""

import sys

from foremoe.cli import main

sys.exit(main())
