"""``python -m locatvit``."""

import sys

from locatvit.cli.main import main

sys.exit(main())
