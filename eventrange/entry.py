"""The `yoda` command's first step: find our own packages, then run the command line.

The HEP histogramming package YODA imports as `yoda` too and sits on the PYTHONPATH of many software views, ahead of
site-packages. This module's name collides with nothing, so it is what the console script and the ranks start; it puts the
folder it came from first on the path, and only then imports `yoda.cli`.
"""

from __future__ import annotations

import importlib
import os
import sys


def main() -> int:
    """Run the command line of this distribution and return its exit code."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path[0] != home:
        sys.path.insert(0, home)
    return int(importlib.import_module("yoda.cli").main())


if __name__ == "__main__":
    sys.exit(main())
