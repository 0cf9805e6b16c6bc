"""What every contestant is given: payloads of six fields, and a sentence on the machine.

Nothing here needs more than the standard library: contestants run in virtual
environments of their own.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

Fields = dict[str, Any]


def fields(number: int) -> Fields:
    """The six fields of one order, as JSON knows them; those of `benchmarks.memory.Order`."""
    return {
        "id": number,
        "customer": "ada@example.org",
        "total": 12.5,
        "express": True,
        "lines": ["book", "pen"],
        "note": None,
    }


def machine() -> str:
    """Processor, cores, memory and system, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
