"""Makes runs with foretold sites, one after the other: `python -m tests.stages.foretold_worker FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stages.forks import Forks

forks = Forks("tests.stages.foretold", Path(sys.argv[1]))
forks.run("prepare")
forks.run("learn", "calm")
forks.disturb("learn", "disturbed", kill_after=5)
