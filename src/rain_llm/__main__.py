"""``python -m rain_llm``: the same as ``rain``."""

import sys

from rain_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
