"""Data sets that the library `datasets` reads: which files they have, and the rows of a file.

A file is a slice: it is read by the library's builder for its format, in batches, so that memory is bounded, the order
of the rows is that of the file, and a run resumes at the next file. Code that lies in a data set is never run.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config.corpus import DatasetConfig
from pipeline.config.errors import UserError
from pipeline.core.hub import file_of
from pipeline.core.progress import log
from pipeline.corpus.arrow_values import column_values
from pipeline.corpus.choosing import is_bookkeeping
from pipeline.corpus.opening import HUB, SourceFile
from pipeline.corpus.sources import Listing, list_source
from pipeline.corpus.splits import Choice, Layout, choose, patterns_by_split

BATCH_ROWS = 256
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
_OURS = {"json": "jsonl or json", "csv": "csv", "parquet": "parquet", "text": "text", "arrow": "arrow"}
"""Our own readers for formats of builders."""


def dataset_files(about: DatasetConfig, held_out: str | None = None) -> list[SourceFile]:
    """Return the files of a data set, by configuration, split and name.

    Args:
        about: what `datasets.load_dataset` would get.
        held_out: another split that is read as well, for validation.

    Raises:
        UserError: the data set cannot be listed, has several configurations of which none is named, or no such split.
    """
    builders = _builders()
    if about.split and re.search(r"[\[\]%:]", about.split):
        raise UserError("a part of a split cannot be read", where=about.split, hint="name the split alone: `train`")
    splits = tuple(about.split.split("+")) if about.split else ()
    if about.path in builders.values():
        listing, builder = _listed_data_files(about), about.path
    else:
        listing, builder = _listed_folder(about), ""
    module_of = {name: builder or _builder_of(name, builders) for name in listing.names}
    names = [name for name, module in sorted(module_of.items()) if module]
    if not names:
        raise UserError(
            "the data set has no file that `datasets` reads", where=about.path, hint="it may be code, which is not run"
        )
    choice = choose(names, listing.layout, about.path, splits=splits, configuration=about.name, held_out=held_out)
    for line in choice.lines():
        log(line)
    return [
        SourceFile(
            name=f"{_origin(choice, name)}/{name.lstrip('/')}",
            url=f"{listing.root}/{name}" if listing.root else name,
            format="dataset",
            compression=None,
            held_out=name in choice.held_out,
            builder=module_of[name],
            streamed=about.streaming,
        )
        for name in choice.parts
    ]


def _origin(choice: Choice, name: str) -> str:
    """Return `configuration/split` of a file, which its name in the tables begins with."""
    part = choice.parts[name]
    return f"{next(iter(part.configurations), 'default')}/{part.split or 'train'}"


def _builders() -> dict[str, str]:
    """Return the library's builders by extension of files."""
    from datasets.packaged_modules import _EXTENSION_TO_MODULE

    return {extension: module for extension, (module, _) in _EXTENSION_TO_MODULE.items()} | {".tgz": "webdataset"}


def _builder_of(name: str, builders: dict[str, str]) -> str:
    """Return the builder for a file, "" if there is none."""
    path = PurePosixPath(name)
    if path.suffix.lower() in _COMPRESSED and path.with_suffix("").suffix != ".tar":
        path = path.with_suffix("")
    return builders.get(path.suffix, builders.get(path.suffix.lower(), ""))


def _listed_folder(about: DatasetConfig) -> Listing:
    """Return the files of a local folder or a data set on the Hub."""
    path = Path(about.path).expanduser()
    if path.suffix == ".py":
        raise UserError("a script is not run", where=about.path, hint="give its data files as `data_files`")
    local = path.is_dir()
    if local:
        listing = list_source(str(path))
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", about.path):
        listing = list_source(f"hf://datasets/{about.path}", about.revision)
    else:
        hint = "give a folder, owner/name, or a builder (`json`, `csv`, …) with `data_files`"
        raise UserError("neither a folder nor a data set on the Hub", where=about.path, hint=hint)
    names = [name for name in listing.names if not is_bookkeeping(name, listing.names)]
    layout, folder = listing.layout, (about.data_dir or "").strip("/")
    if about.data_files is not None:
        by_split = patterns_by_split(about.data_files, folder)
        for pattern in (pattern for patterns in by_split.values() for pattern in patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError("no file matches `data_files`", where=pattern, hint=f"it is sought in {about.path}")
        layout = Layout({about.name or "default": by_split})
    elif folder:
        names = [name for name in names if name.startswith(f"{folder}/")]
    return listing._replace(names=names, layout=layout)


def _listed_data_files(about: DatasetConfig) -> Listing:
    """Return the files that `data_files` names for a builder, by their whole addresses."""
    if about.data_files is None:
        raise UserError(f"the builder `{about.path}` needs files", where="corpus.dataset", hint="give `data_files`")
    folder = (about.data_dir or "").rstrip("/")
    found: dict[str, list[str]] = {}
    for split, patterns in patterns_by_split(about.data_files).items():
        for pattern in patterns:
            listing = list_source(os.path.join(folder, pattern) if folder else pattern, about.revision)
            found.setdefault(split, []).extend(f"{listing.root}/{name}" for name in listing.names)
    root = _common_folder([name for names in found.values() for name in names])
    by_split = {split: [name.removeprefix(root).lstrip("/") for name in names] for split, names in found.items()}
    every = [name for names in by_split.values() for name in names]
    return Listing(root, every, False, "", Layout({"default": _escaped(by_split)}))


def _common_folder(addresses: Sequence[str]) -> str:
    """Return the longest folder that all addresses begin with.

    Example:
        >>> _common_folder(["s3://b/x/1.csv", "s3://b/x/y/1.csv"]), _common_folder(["file:///a/b.csv"])
        ('s3://b/x', 'file:///a')
    """
    levels = zip(*(address.split("/")[:-1] for address in addresses), strict=False)
    return "/".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _escaped(by_split: dict[str, list[str]]) -> dict[str, Sequence[str]]:
    """Return names as patterns that match nothing else."""
    return {split: [re.sub(r"([*?[])", r"[\1]", name) for name in names] for split, names in by_split.items()}


# ---------------------------------------------------------------------------------------------------- reading


def dataset_rows(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as the library's builder reads them; pictures and sound stay bytes.

    Raises:
        UserError: the library cannot go on; the message has the row after which, and whether our own reader can.
    """
    import datasets

    datasets.disable_progress_bars()
    row = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            builder = datasets.load_dataset_builder(
                file.builder, data_files={"train": [_address(file)]}, cache_dir=scratch
            )
            rows = builder.as_streaming_dataset(split="train")
            tables = isinstance(builder, datasets.ArrowBasedBuilder)
            for values in _of_tables(rows) if tables else rows.decode(False):
                values.pop("__url__", None)  # of web datasets: where the file lies here
                yield values
                row += 1
        except UserError:
            raise
        except Exception as error:  # builders pass on the errors of every library below them
            raise _stopped(file, row, error) from error


def _of_tables(rows: Any) -> Iterator[dict[str, Any]]:
    for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for batch in table.combine_chunks().to_batches():
            for values in zip(*map(column_values, batch.columns), strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def _stopped(file: SourceFile, row: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    ours = _OURS.get(file.builder)
    hint = f"{reason}; fix the file"
    if ours is not None:
        hint += f", or read it with `corpus.source` instead: our reader of {ours} quarantines a broken record"
    where = f"{file.name}, after row {row - 1:,}" if row else f"{file.name}, in its first rows"
    return UserError("`datasets` cannot read on", where=where, hint=hint)


def _address(file: SourceFile) -> str:
    """Return where the library finds a file: its copy on this machine, unless it is streamed."""
    if (match := HUB.fullmatch(file.url)) and not file.streamed:
        return str(file_of(match["repo"], "dataset", match["revision"], match["path"]))
    return file.url.removeprefix("file://")
