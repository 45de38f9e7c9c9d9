"""`rpt`, as a program whose processes all hold little in memory at once: see `small_parts`."""

from __future__ import annotations

import sys

from tests.stages import small_parts  # first; the workers that are spawned import this file, too

if __name__ == "__main__":
    import pipeline.core.ray_executor
    from commands.cli import main

    pipeline.core.ray_executor.RayExecutor = small_parts.SmallRayExecutor  # type: ignore[misc]
    sys.exit(main())
