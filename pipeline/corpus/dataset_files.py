"""Data sets that the library `datasets` reads: which files they have, and which builder of the library reads each.

A file is a slice: it is read by the library's builder for its format, in batches, so that memory is bounded, the order
of the rows is that of the file, and a run resumes at the next file. Code that lies in a data set is never run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

from pipeline.config.corpus import DatasetConfig
from pipeline.config.errors import UserError, first_line
from pipeline.core.progress import log
from pipeline.corpus.readers.dataset import count_rows
from pipeline.corpus.sources.choosing import is_bookkeeping
from pipeline.corpus.sources.finding import Listing, list_source
from pipeline.corpus.sources.opening import SourceFile
from pipeline.corpus.sources.splits import OF_DATASET, Choice, Layout, choose, is_of_split, patterns_by_split

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4")

_EXTENSIONS = {
    "csv": ".csv .tsv",
    "json": ".json .jsonl .ndjson",
    "parquet": ".parquet .geoparquet .gpq",
    "arrow": ".arrow",
    "text": ".txt",
    "webdataset": ".tar .tgz",
    "xml": ".xml",
    "hdf5": ".hdf5 .h5",
    "conll": ".conll .conllu",
    "fasta": ".fa .fasta .fna .ffn .faa .frn .afa",
    "fastq": ".fq .fastq",
    "genbank": ".gb .gbk .genbank",
    "pdb": ".pdb .ent",
    "mmcif": ".cif .mmcif",
}
BUILDERS = {extension: builder for builder, extensions in _EXTENSIONS.items() for extension in extensions.split()}
"""The library's builder by extension of a file, for formats that have text. The library's own table is private."""


def dataset_files(about: DatasetConfig, held_out: str | None = None) -> list[SourceFile]:
    """Return the files of a data set, by configuration, split and name.

    Args:
        about: what `datasets.load_dataset` would get.
        held_out: another split that is read as well, for validation.

    Raises:
        UserError: the data set cannot be listed, has several configurations of which none is named, or no such split.
    """
    asked = tuple(about.split.split("+")) if about.split else ()
    splits = tuple(dict.fromkeys(split.partition("[")[0].strip() for split in asked))
    if about.path in _EXTENSIONS:
        listing, builder = _listed_data_files(about), about.path
    else:
        listing, builder = _listed_folder(about), ""
    module_of = {name: builder or _builder_of(name) for name in listing.names}
    names = [name for name, module in sorted(module_of.items()) if module]
    if not names:
        raise UserError(
            "the data set has no file that `datasets` reads", where=about.path, hint="it may be code, which is not run"
        )
    choice = choose(
        names, listing.layout, about.path, splits=splits, configuration=about.name, held_out=held_out, keys=OF_DATASET
    )
    for line in choice.lines():
        log(line)
    files = [
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
    if not any("[" in split for split in asked):
        return files
    parts = list(choice.parts.values())
    of_split = {split: [n for n, part in enumerate(parts) if is_of_split(part, split)] for split in splits}
    return _parts_of_splits(files, of_split, about.split or "")


def _parts_of_splits(files: Sequence[SourceFile], of_split: Mapping[str, Sequence[int]], spec: str) -> list[SourceFile]:
    """Return files with the ranges of rows that a specification like `train[:10%]+test[5:]` takes of them.

    Args:
        files: all files, with those that are only held out.
        of_split: numbers of the files of each split, in the order of its rows.
        spec: what `datasets` takes as a split.

    Raises:
        UserError: it is not such a specification.
    """
    from datasets import ReadInstruction

    try:
        instruction = ReadInstruction.from_spec(spec)
        log("source       counting the rows of the files, of which a part is read")
        counts = {n: count_rows(files[n]) for numbers in of_split.values() for n in numbers}
        parts = instruction.to_absolute({split: sum(counts[n] for n in ns) for split, ns in of_split.items()})
    except (ValueError, AssertionError) as error:
        hint = f"`train[:10%]`, `train[100:200]`, `train[-5:]+test`: {first_line(error)}"
        raise UserError("a part of a split is written as in `datasets`", where=spec, hint=hint) from error
    ranges: dict[int, list[tuple[int, int]]] = {n: [] for n in counts}
    for part in parts:
        begin = 0
        for n in of_split[part.splitname]:
            start, stop = max(part.from_ - begin, 0), min(part.to - begin, counts[n])
            if start < stop:
                ranges[n].append((start, stop))
            begin += counts[n]
    taken = [replace(file, rows=tuple(ranges[n])) if n in ranges else file for n, file in enumerate(files)]
    return [file for file in taken if file.rows != ()]


def _origin(choice: Choice, name: str) -> str:
    """Return `configuration/split` of a file, which its name in the tables begins with."""
    part = choice.parts[name]
    return f"{next(iter(part.configurations), 'default')}/{part.split or 'train'}"


def _builder_of(name: str) -> str:
    """Return the builder for a file, "" if there is none.

    Example:
        >>> _builder_of("a/x.jsonl.gz"), _builder_of("shard-0.TAR"), _builder_of("logo.png")
        ('json', 'webdataset', '')
    """
    path = PurePosixPath(name.lower())
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return BUILDERS.get(path.suffix, "")


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
