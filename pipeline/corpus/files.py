"""The files of a corpus, from wherever its manifest says that its records come."""

from __future__ import annotations

from dataclasses import replace

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.dataset_files import dataset_files
from pipeline.corpus.sources.finding import chosen_files
from pipeline.corpus.sources.opening import SourceFile


def corpus_files(config: CorpusConfig, source: str | None = None) -> list[SourceFile]:
    """Return the files of a corpus, sorted by name, and log which configurations and splits are read and left out.

    Several sources come one after the other, and the names of their files begin with the name of the source.

    Args:
        config: the manifest's `corpus`.
        source: source to read instead of `corpus.source`.

    Raises:
        UserError: as in `find_files`, `choose` and `dataset_files`, or `source` is given for several sources.
    """
    if config.sources and source is not None:
        names = ", ".join(part.name for part in config.sources)
        raise UserError("--source is for a manifest with one source", where=source, hint=f"this one has {names}")
    if not config.sources:
        return _files(config, source)
    return [
        replace(file, name=f"{part.name}/{file.name}", corpus=part.name)
        for part in config.sources
        for file in _files(config.for_source(part.name), None)
    ]


def _files(config: CorpusConfig, source: str | None) -> list[SourceFile]:
    if config.dataset is None or source is not None:
        return chosen_files(config, source or config.source)
    return dataset_files(config.dataset, config.validation.split)
