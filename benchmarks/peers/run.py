"""The process of one measurement: `python -m benchmarks.peers.run MODULE:CLASS SPEC`.

A module of its own, so that the driver is imported under its real name, by which
some peers store their tasks.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.peers.drive import MEASURES, Meter, Spec, measured
from benchmarks.peers.fleet import Tally, TallyingMeter, fleet, work_until_orphaned

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    driver = importlib.import_module(f"benchmarks.peers.drivers.{module}")
    peer, spec = getattr(driver, name), Spec(**json.loads(sys.argv[2]))
    meter = Meter(peer.flavour)
    if spec.tally:
        meter = TallyingMeter(peer.flavour, tally=Tally(Path(spec.tally)), worker=spec.worker)
    measures = MEASURES | {"fleet": fleet, "worker": work_until_orphaned}
    measured(peer, measures[spec.measure], spec, meter)
