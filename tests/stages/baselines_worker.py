"""Makes the runs of `baselines`, one after the other: `python -m tests.stages.baselines_worker FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stages.forks import Forks

forks = Forks("tests.stages.baselines", Path(sys.argv[1]))
forks.run("prepare")
forks.run("learn_text", "ntp")
forks.disturb("learn_text", "disturbed", kill_after=5)
forks.run("learn_text", "equal", "ntp")
forks.run("learn", "form", "task.reward=format_only", "budget.stop.probe_sites=null")  # nearly all have it
forks.run("learn", "shuffled", "task.targets=shuffled")
forks.run("imitate", "sft", "form")
forks.run("imitate", "sft-answers")
forks.run("answer", "finetuned")
