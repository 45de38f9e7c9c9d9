"""The command line: `rpt data`, `rpt train`, `rpt evaluate`, one command a stage; stages/commands has them by group.

Heavy libraries are imported inside the commands, so that `rpt --help` and manifest checks start at once.
"""

from __future__ import annotations

import sys

import typer

from pipeline.core.errors import mendable
from pipeline.core.progress import quiet_libraries, say
from stages.commands import data, elsewhere, evaluate, house, look, train

app = typer.Typer(
    name="rpt",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reinforcement Pre-Training: turn a corpus into hard next-token sites, and train a policy on them.",
    epilog="Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted.",
)
for group in (data, train, evaluate, look, elsewhere, house):
    app.add_typer(group.commands)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake to mend, 3 damaged artifacts, 130 interrupted."""
    quiet_libraries()
    try:
        app()
    except SystemExit as over:
        if over.code == 130:  # what typer makes of Ctrl-C
            say("interrupted: run the same command again to resume")
        raise
    except Exception as error:
        if not (mend := mendable(error)):
            raise
        say(f"error: {mend}")
        sys.exit(mend.exit_code)


if __name__ == "__main__":
    main()
