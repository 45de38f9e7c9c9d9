"""Which outputs are whose, where manifests with other sources, proxies or tokenizers share a name and a work folder.

A fingerprint has the content of a source or model, a manifest only its location. A pointer connects them: a file in the
stage's folder, named after a hash of what the manifest names, that holds the fingerprint of the output made from it
last.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.config.base import canonical_json
from pipeline.config.corpus import CorpusConfig, SourceConfig
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record, is_current, published_record, read_pointer, read_record

PATTERNS = ("read/source-*", "score/proxy-*", "materialize/policy-*")
"""Where pointers lie below a manifest's folder."""


def source_pointer(work: Path, corpus: CorpusConfig) -> Path:
    """Return the file that names the latest `read` output for this source."""
    return _pointer(work / "read" / "source", _sources(corpus))


def proxy_pointer(work: Path, manifest: Manifest) -> Path:
    """Return the file that names the latest `score` output for this source and these models."""
    return _pointer(work / "score" / "proxy", [*_sources(manifest.corpus), *_models(manifest)])


def policy_pointer(work: Path, manifest: Manifest) -> Path:
    """Return the file that names the latest `materialize` output for this source, these models and this tokenizer."""
    tokenizer = [manifest.materialize.policy_tokenizer, manifest.materialize.policy_tokenizer_revision]
    named = [*_sources(manifest.corpus), *_models(manifest), *tokenizer]
    return _pointer(work / "materialize" / "policy", named)


def _sources(corpus: CorpusConfig) -> list[Any]:
    sources = [{"name": "", "source": corpus.source, "revision": corpus.revision} | _chosen(corpus)]
    sources += [{"name": s.name, "source": s.source, "revision": s.revision} | _chosen(s) for s in corpus.sources]
    return sources


def _chosen(source: CorpusConfig | SourceConfig) -> dict[str, Any]:
    """Return which splits, configuration and files of a source are read, if a manifest says so."""
    chosen: dict[str, Any] = {"splits": list(source.splits), "configuration": source.configuration}
    chosen |= {"include": list(source.include), "exclude": list(source.exclude)}
    chosen["dataset"] = source.dataset.model_dump(mode="json") if source.dataset else None
    return {key: value for key, value in chosen.items() if value}


def _models(manifest: Manifest) -> list[Any]:
    return [part.without_added() if part else None for part in (manifest.proxy, manifest.reference)]


def _pointer(path: Path, named: Any) -> Path:
    return path.with_name(f"{path.name}-{hashlib.sha256(canonical_json(named).encode()).hexdigest()[:12]}")


def superseded_by_others(work: Path) -> list[Path]:
    """Return the outputs that pointers name and that are not the latest of their stage: other manifests' outputs."""
    named = {made for pattern in PATTERNS for path in work.glob(pattern) if (made := read_pointer(path))}
    return [made for made in sorted(named) if not is_current(made)]


def is_of_source(work: Path, corpus: CorpusConfig, documents: Record) -> bool:
    """Return whether documents were made from a manifest's source, as `rpt data` read it last.

    It is true for documents that record no source, and if there is no record of a source.
    """
    read = [record for path in (work / "read").glob("[!.]*/record.json") if (record := read_record(path.parent))]
    if not read or "read" not in documents.inputs:
        return True
    last = read_pointer(source_pointer(work, corpus))
    if last is None:
        return False
    source = published_record(last).inputs.get("source")
    return any(r.content == documents.inputs["read"] and r.inputs.get("source") == source for r in read)


def is_of_proxy(work: Path, manifest: Manifest, scores: Record) -> bool:
    """Return whether scores are by a manifest's models, as `rpt data` found them last; true if nothing was recorded.

    A proxy that is made from the corpus is known by the configuration it was made with.
    """
    if (made_with := manifest.proxy.made_here) is not None:
        fitted = [record for path in (work / "proxy").glob("[!.]*/record.json") if (record := read_record(path.parent))]
        own = {record.content for record in fitted if record.config == made_with.identity()}
        return not fitted or scores.inputs.get("proxy") in own
    return _agrees(proxy_pointer(work, manifest), scores, ("proxy", "tokenizer", "reference"))


def is_of_policy(work: Path, manifest: Manifest, shards: Record) -> bool:
    """Return whether shards are in a manifest's tokens, as `rpt data` found them last; true if nothing was recorded."""
    return _agrees(policy_pointer(work, manifest), shards, ("policy_tokenizer",))


def _agrees(pointer: Path, record: Record, inputs: tuple[str, ...]) -> bool:
    """Return whether a record has the same inputs of these names as the output that a pointer names."""
    if not any(pointer.parent.glob(f"{pointer.name.partition('-')[0]}-*")):
        return True
    last = read_pointer(pointer)
    if last is None:
        return False
    named = published_record(last).inputs
    return all(named.get(name) == record.inputs.get(name) for name in inputs)
