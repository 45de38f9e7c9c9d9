"""Makes the runs of `warmups`, one after the other: `python -m tests.stages.warmups_worker FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stages.forks import Forks

folder = Path(sys.argv[1])
forks = Forks("tests.stages.warmups", folder)
forks.run("prepare")
blank = f"policy.model={folder / 'blank'}"
forks.run("warm_up", "form", "9000", blank, "task.thinking=none")
forks.run("warm_up", "rules", "0")
forks.disturb("warm_up", "disturbed", "0", kill_after=4)
forks.run("screened")
forks.run("warm_up", "sampled", "0", "warmup.thoughts=sampled", "warmup.where=band = 'hard'")
forks.run("learn", "trained", f"policy.model={folder / 'rules' / 'policy'}")
