"""The command line `rpt`: one command per stage, defined in commands/groups by panel of the help.

Heavy libraries are imported inside the commands, so that `rpt --help` and manifest checks start at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
import typer.core
import typer.main

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
    epilog="Exit codes: 0 done, 2 user error, 3 damaged artifacts, 4 refused (certificate, power), 130 interrupted.",
)
for group in (data, train, evaluate, inspect, exchange, maintenance):
    app.add_typer(group.commands)


def _print_version(requested: bool) -> None:
    if requested:
        import importlib.metadata

        print(f"rpt {importlib.metadata.version('rpt')}")  # pyproject.toml has it, and nothing else does
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `rpt` itself."""


def command_line() -> typer.core.TyperGroup:
    """Return the command `rpt`, whose help shows flags without the type of a value (`--json`, not `--json <bool>`)."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in (("rpt", group), *group.commands.items()):
        for option in command.get_params(typer.Context(command, info_name=name)):  # with `--help`
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return group


def main() -> None:
    """Run the command line. Its help has the exit codes."""
    quiet_libraries()
    try:
        command_line()()
    except SystemExit as stop:
        if stop.code == 130:  # Typer turns Ctrl-C into this code
            log("interrupted: run the same command again to resume")
        raise
    except Exception as error:
        if not (user_error := as_user_error(error)):
            raise
        log(f"error: {user_error}")
        sys.exit(user_error.exit_code)


if __name__ == "__main__":
    main()
