"""Browse: serve a page over what the stages have published, to this machine only.

Input:   the selection that the manifest describes, the `documents` and `scores` behind it, every other `select` of
         them, and the files of training runs.
Output:  pages on http://127.0.0.1:PORT; `browse` (an index of the scores, made once) and `flags.jsonl` in the work
         folder of the manifest. Nothing else is written.
Command: rpt browse data_manifests/<name>.yaml [--recipe recipes/<name>.yaml] [--run runs/<name>]… [--port 8000]
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from pathlib import Path

from pipeline.audit.board.run import open_runs
from pipeline.audit.browse.app_state import AppState, Records
from pipeline.audit.browse.flags import Flags
from pipeline.audit.browse.index import index
from pipeline.audit.browse.listening import address, listening, server
from pipeline.audit.browse.security import LOOPBACK
from pipeline.audit.browse.selection_bitmap import kept
from pipeline.audit.browse.selections import Selections
from pipeline.audit.browse.server import create_app
from pipeline.audit.lineage import lineage_of
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.task import TaskConfig
from pipeline.core.executor import Executor
from pipeline.core.progress import log
from pipeline.core.workspace import with_policy_tokenizer


def open_library(
    manifest: Manifest,
    *,
    work: Path,
    executor: Executor,
    recipe: Recipe | None = None,
    runs: Sequence[Path] = (),
    command: str = "",
) -> AppState:
    """Bring the index up to date and return the state which the pages show.

    Args:
        manifest: with its overrides; its selection is shown first, other selections of the same scores beside it.
        work: the manifest's folder.
        executor: builds the index.
        recipe: its prompt template and policy make the prompts; without one, the default template is used.
        runs: folders of the runs that are shown, that of the rollouts at sites first; by default `runs/<recipe>`, if
            it exists.
        command: `rpt select` with manifest and overrides, to which pages add a rule.

    Raises:
        UserError: the selection that the manifest describes does not exist, or a run that is given.
    """
    opened = open_runs(runs or [path for path in [Path("runs") / recipe.name] if path.is_dir()] if recipe else runs)
    lineage, manifest = lineage_of(work, manifest), with_policy_tokenizer(manifest, work)
    documents, scores, current = lineage.ingest, lineage.score, lineage.select
    indexed = index(documents, scores, work=work, executor=executor)
    made = Selections(work, scores, current, lambda record: kept(indexed, record, work=work, executor=executor))
    for selection in made.all().values():
        selection.rule("train")  # makes the bitmaps before anyone asks
    proxy = manifest.proxy
    fitted = lineage.before["proxy"].files("model")[0].path if proxy.made_here else None
    return AppState(
        manifest,
        Records(documents, scores, indexed, made),
        Flags(work / "flags.jsonl"),
        task=recipe.task if recipe else TaskConfig(),
        policy=recipe.policy.model if recipe else manifest.materialize.policy_tokenizer,
        proxy=str(fitted or proxy.tokenizer or proxy.model),
        runs=opened,
        command=command or f"rpt select {shlex.quote(manifest.name)}",
    )


def serve(library: AppState, port: int) -> None:
    """Serve the pages until Ctrl+C or SIGTERM, which end the process immediately.

    Raises:
        UserError: the port is in use.
    """
    with listening(port) as taken:
        threading.Thread(target=lambda: library.prompts, daemon=True).start()  # slow to load: start now
        log(f"browse       {address(taken)}  (Ctrl+C ends it)")
        server(create_app(library, LOOPBACK)).run(sockets=[taken])
