"""The reference pages, generated from the code when the site is built: every key, every table, every command.

`mkdocs.yml` names this file as a hook; `python docs/generate.py reference.md` prints one of the pages.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import pyarrow as pa  # noqa: E402
import typer.main  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from pipeline.config.base import Config  # noqa: E402
from pipeline.config.manifest import Manifest  # noqa: E402
from pipeline.config.recipe import Recipe  # noqa: E402


def reference() -> str:
    """Return the page of every key of manifests and recipes."""
    parts = [
        "# Every key",
        "The keys of manifests (`data_manifests/*.yaml`) and recipes (`recipes/*.yaml`), generated from "
        "`pipeline/config/`. An unknown key is refused, and the error names the nearest known one. "
        "`--set key.subkey=value` overrides a key. `rpt schema manifest` and `rpt schema recipe` print JSON Schemas, "
        "with which editors complete YAML.",
    ]
    for kind, title in ((Manifest, "Manifest"), (Recipe, "Recipe")):
        parts += [f"## {title}"]
        for path, model in models(kind, ""):
            parts += [
                f"### `{path}`" if path else f"### {title}: outermost keys",
                inspect.getdoc(model) or "",
                keys(model),
            ]
    return "\n\n".join(parts) + "\n"


def models(kind: type[Config], path: str) -> Iterator[tuple[str, type[Config]]]:
    """Yield (dotted key, model) for a model and every model below it."""
    yield path, kind
    for name, field in kind.model_fields.items():
        for below in _models_in(field.annotation):
            many = "[]" if typing.get_origin(field.annotation) is tuple else ""
            yield from models(below, f"{path}.{name}{many}".lstrip("."))


def _models_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def keys(model: type[Config]) -> str:
    """Return a table of a model's fields."""
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else _default(field.default)
        rows.append([f"`{name}`", _cell(_type(field.annotation)), default, _cell(field.description or "")])
    return table(["key", "type", "default", ""], rows)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        inner = [argument for argument in arguments if argument is not Ellipsis]
        return f"list of {_type(inner[0])}"
    if origin is typing.Annotated:
        return _type(arguments[0])
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "keys below"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(value: Any) -> str:
    if isinstance(value, Config):
        return _cell(f"`{value.model_dump(exclude_unset=True)}`") if value.model_fields_set else "its defaults"
    if isinstance(value, tuple):
        value = list(value)
    shown = value if isinstance(value, list | dict) else {None: "null", "": '""'}.get(value, value)
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"


def tables() -> str:
    """Return the page of every published table."""
    from pipeline.corpus.dedup.results import MATCHES
    from pipeline.corpus.documents import DOCUMENTS
    from pipeline.corpus.quarantine import QUARANTINE
    from pipeline.grpo.data.pass_rates import PASS_RATES
    from pipeline.grpo.rollout.rollouts import ROLLOUTS
    from pipeline.scoring.table import SCORES
    from pipeline.selection.proxy_measures import CALIBRATION, SAMPLE
    from pipeline.selection.sites import SITES
    from pipeline.shards.schema import SHARDS

    listed = [
        ("documents", "ingest", "a document", DOCUMENTS),
        ("quarantine", "ingest, score", "a record that could not be used", QUARANTINE),
        ("matches", "assign", "a document that was dropped, and what it matched", MATCHES),
        ("scores", "score", "a document; lists have one value per position", SCORES),
        ("sites", "select", "a selected position", SITES),
        ("calibration", "certificate", "a bin of entropy", CALIBRATION),
        ("sample", "certificate", "a document on which bits per byte are compared", SAMPLE),
        ("train, validation", "materialize", "a training example", SHARDS),
        ("pass_rates", "screen", "a screened site", PASS_RATES),
        ("rollouts/step-*.parquet", "a run", "a response", ROLLOUTS),
    ]
    parts = [
        "# Tables",
        "All tables are Parquet with zstd and page checksums, in `work/<manifest>/<stage>/<fingerprint>/`. A stage's "
        "list of shards (`done/shards.*.parquet`) has their sha256, and `record.json` that of the list. Binary columns "
        "hold exact bytes, because tokens may split characters.",
    ]
    for name, stage, row, schema in listed:
        rows = [
            [f"`{field.name}`", f"`{_arrow(field.type)}`", "" if field.nullable else "never null"] for field in schema
        ]
        parts += [f"## {name}", f"Written by {stage}. A row is {row}.", table(["column", "type", ""], rows)]
    return "\n\n".join(parts) + "\n"


def _arrow(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_arrow(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(f"{field.name}: {_arrow(field.type)}" for field in kind) + "}"
    return str(kind)


def commands() -> str:
    """Return the page of every command, from its help."""
    from commands.cli import app

    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    parts = [
        "# Commands",
        "Exit codes: 0 done; 1 a bug; 2 a user error, reported in one line; 3 damaged artifacts; 4 a selection "
        "that its [certificate](certificate.md) refuses; 130 interrupted (Ctrl-C). Progress goes to standard "
        "error: a moving bar on a terminal, a plain line every half minute elsewhere. Results go to standard output. "
        "`rpt --install-completion` completes commands and options in your shell; `rpt --version` prints the version.",
    ]
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        said = inspect.cleandoc(command.help or "")
        usage = " ".join(command.collect_usage_pieces(command.context_class(command, info_name=f"rpt {name}")))
        rows = [
            [f"`{' '.join(option.opts + option.secondary_opts)}`", _cell(getattr(option, "help", None) or "")]
            for option in command.params
            if option.name != "help"
        ]
        about, _, examples = said.partition("Example")
        shown = [line.strip() for line in examples.splitlines() if line.strip().startswith("rpt ")]
        parts += [f"## rpt {name}", about.strip(), f"`rpt {name} {usage}`", table(["", ""], rows)]
        parts += ["```bash\n" + "\n".join(shown) + "\n```"] if shown else []
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"reference.md": reference, "tables.md": tables, "commands.md": commands}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (a MkDocs hook)."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
