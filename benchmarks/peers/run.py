"""The process of one measurement: `python -m benchmarks.peers.run MODULE:CLASS SPEC`.

A module of its own, so that the driver is imported under its real name, by which
some peers store their tasks.
"""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.peers.drive import Spec, measured

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    driver = importlib.import_module(f"benchmarks.peers.drivers.{module}")
    measured(getattr(driver, name), Spec(**json.loads(sys.argv[2])))
