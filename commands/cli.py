"""The command line: `rpt data`, `rpt train`, `rpt evaluate`, one command a stage; commands/groups has them by panel.

Heavy libraries are imported inside the commands, so that `rpt --help` and manifest checks start at once.
"""

from __future__ import annotations

import sys

import typer

from commands.groups import data, evaluate, exchange, inspect, maintenance, train
from pipeline.config.errors import as_user_error
from pipeline.core.progress import log, quiet_libraries

app = typer.Typer(
    name="rpt",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reinforcement Pre-Training: turn a corpus into hard next-token sites, and train a policy on them.",
    epilog="Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted.",
)
for group in (data, train, evaluate, inspect, exchange, maintenance):
    app.add_typer(group.commands)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted."""
    quiet_libraries()
    try:
        app()
    except SystemExit as over:
        if over.code == 130:  # what typer makes of Ctrl-C
            log("interrupted: run the same command again to resume")
        raise
    except Exception as error:
        if not (mend := as_user_error(error)):
            raise
        log(f"error: {mend}")
        sys.exit(mend.exit_code)


if __name__ == "__main__":
    main()
