"""Set the clocks of the product and of the simulator in every process of `nox -s calendar`.

Python imports a module of this name when it starts, from a folder on PYTHONPATH, so that the processes which a test
starts share its clock. Only the two clock modules are loaded here; the package finds them when it is imported.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "wme_async"
CLOCKS = {"wme_async._clock": "_clock.py", "wme_async.simulator.clock": "simulator/clock.py"}


def now() -> float:
    """Return the time of the current test: real time plus an offset that the test's fixture sets, in seconds."""
    return time.time() + float(os.environ.get("WME_TEST_CLOCK_OFFSET", "0"))


for name, path in CLOCKS.items():
    spec = importlib.util.spec_from_file_location(name, PACKAGE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    vars(module)["source"] = now
