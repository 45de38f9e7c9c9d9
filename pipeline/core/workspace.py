"""What lies in a manifest's work folder: outputs of stages, what they were made from, and what none of them needs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.base import canonical_json, differences
from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import (
    Completion,
    Record,
    current_record,
    is_current,
    published_record,
    read_completion,
    read_pointer,
    read_record,
)
from pipeline.core.marks import BEGUN, PULLED, begun_inputs, is_pulled

IN_USE = 3600.0
"""Seconds after its last change during which a left-over may still be a running worker's."""


@dataclass(frozen=True)
class Output:
    """One folder `work/<manifest>/<stage>/<fingerprint>/`."""

    stage: str
    directory: Path
    record: Record | None
    """None: not complete."""
    done: tuple[Completion, ...]
    """Of the shards that are published."""
    current: bool
    """It is what its stage made last."""
    inputs: Mapping[str, str]
    """What it is made from, complete or not."""

    @property
    def fingerprint(self) -> str:
        return self.directory.name

    @property
    def bytes(self) -> int:
        """Of everything in the folder."""
        return size_of(self.directory)

    def leftovers(self, now: float | None = None) -> list[Path]:
        """Files that no completion names, and scratch folders, unless they changed within the last hour."""
        named = {entry.path for done in self.done for entry in done.files.values()} | {
            "record.json",
            "done",
            PULLED,
            BEGUN,
        }
        before = (time.time() if now is None else now) - IN_USE
        found = [path for path in sorted(self.directory.iterdir()) if path.name not in named]
        return [path for path in found if _last_change(path) < before]


def outputs(work: Path) -> list[Output]:
    """All stages' outputs in a manifest's folder, by stage and fingerprint; other folders are none."""
    found = []
    for directory in sorted({path.parent for name in ("record.json", "done") for path in work.glob(f"*/[!.]*/{name}")}):
        record = read_record(directory)
        numbers = sorted(int(path.stem) for path in (directory / "done").glob("*.json"))
        done = record.completions if record else tuple(filter(None, (read_completion(directory, n) for n in numbers)))
        inputs = record.inputs if record else begun_inputs(directory)
        found.append(Output(directory.parent.name, directory, record, done, is_current(directory), inputs))
    return found


def unneeded(found: Sequence[Output], trained_on: Iterable[str] = (), sources: Collection[Path] = ()) -> list[Output]:
    """Complete outputs that neither a stage's last output, nor one that is not complete yet, nor a run was made from.

    Args:
        found: the outputs of one folder.
        trained_on: fingerprints that runs name (`made_from`).
        sources: outputs of `read` that are other manifests' of that name; all that was made from them is theirs.
    """
    runs = set(trained_on)
    kept = [o for o in found if o.current or o.record is None or o.fingerprint in runs]
    theirs = [o for o in found if sources and not with_ancestors([o], found).keys().isdisjoint(sources)]
    needed = with_ancestors([*kept, *theirs], found)
    return [output for output in found if output.record is not None and output.directory not in needed]


def source_pointer(work: Path, corpus: CorpusConfig) -> Path:
    """The file that names what was last read for manifests with this source: several may share a name, and a folder."""
    sources = [{"name": "", "source": corpus.source, "revision": corpus.revision}]
    sources += [{"name": s.name, "source": s.source, "revision": s.revision} for s in corpus.sources]
    key = hashlib.sha256(canonical_json(sources).encode()).hexdigest()[:12]
    return work / "read" / f"source-{key}"


def other_sources(work: Path) -> list[Path]:
    """What was last read for manifests with other sources than that which was read last of all."""
    pointed_to = {made for path in (work / "read").glob("source-*") if (made := read_pointer(path))}
    return [made for made in sorted(pointed_to) if not is_current(made)]


def is_of_source(work: Path, corpus: CorpusConfig, documents: Record) -> bool:
    """Whether documents were made from the source of a manifest, as it was when `rpt data` read it last.

    True of documents that say of no source, or if nothing is there that does.
    """
    read = [record for path in (work / "read").glob("[!.]*/record.json") if (record := read_record(path.parent))]
    if not read or "read" not in documents.inputs:
        return True
    last = read_pointer(source_pointer(work, corpus))
    if last is None:
        return False
    source = published_record(last).inputs.get("source")
    return any(r.content == documents.inputs["read"] and r.inputs.get("source") == source for r in read)


def with_ancestors(some: Iterable[Output], found: Iterable[Output]) -> dict[Path, Output]:
    """Some outputs, and all of those found that they were made from, by their folders."""
    complete = [output for output in found if output.record is not None]
    waiting, reached = list(some), dict[Path, Output]()
    while waiting:
        output = waiting.pop()
        if output.directory in reached:
            continue
        reached[output.directory] = output
        made_from = set(output.inputs.values())
        waiting += [o for o in complete if o.record and {o.record.content, o.fingerprint} & made_from]
    return reached


def made_from(run: Path) -> list[str]:
    """Fingerprints of the outputs that a run was trained on, as its `run.json` names them."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return [part["fingerprint"] for part in about.values() if isinstance(part, dict) and "fingerprint" in part]


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs."""
    return sorted(path.parent for path in folder.glob("*/run.json"))


# -------------------------------------------------------------------------------------------------- what is stale


@dataclass(frozen=True)
class State:
    """Of a stage, for a manifest."""

    stage: str
    state: str
    """`up to date`, `stale`, `unfinished` or `missing`."""
    why: tuple[str, ...]
    output: Output | None
    """The one that is up to date, else the last one."""


@dataclass(frozen=True)
class ExpectedRecord:
    """What a stage's record holds, among other things, if it was made as a manifest says."""

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Input's name → the stage it comes from."""


def expected_records(manifest: Manifest) -> list[ExpectedRecord]:
    """The stages of `rpt data` for a manifest, in their order."""
    fitted = manifest.proxy.train
    score: dict[str, Any] = {"score": manifest.score.identity()}
    if manifest.proxy.dtype != "auto":  # what that is depends on where it runs
        score["dtype"] = manifest.proxy.dtype
    made_with = {"documents": "ingest"} | ({"proxy": "proxy"} if fitted else {})
    return [
        ExpectedRecord("ingest", manifest.corpus.identity(), {}),
        *([ExpectedRecord("proxy", fitted.identity(), {"documents": "ingest"})] if fitted else []),
        ExpectedRecord("score", score, made_with),
        ExpectedRecord("select", manifest.select.identity(), {"documents": "ingest", "scores": "score"}),
        ExpectedRecord("materialize", manifest.materialize.identity(), {"documents": "ingest", "sites": "select"}),
    ]


def states(manifest: Manifest, work: Path, versions: Mapping[str, int]) -> list[State]:
    """How each stage of `rpt data` stands, and why.

    Configuration, code versions and what each output was made from are compared; the source's and the models' bytes are
    not read: `rpt data` does that.

    Args:
        manifest: with its overrides.
        work: the manifest's folder.
        versions: of the stages' code, by name.
    """
    found, result, listed = outputs(work), list[State](), expected_records(manifest)
    inner = [output for output in found if output.stage not in {want.stage for want in listed}]
    for want in listed:
        mine = [output for output in found if output.stage == want.stage]
        upstream = {s.stage: s.output.record for s in result if s.state == "up to date" and s.output}
        reasons = {
            output.directory: _reasons(want, output, upstream)
            + _older(with_ancestors([output], inner).values(), versions)
            for output in mine
            if output.record
        }
        for output in mine if want.stage == "ingest" else ():
            if output.record and not is_of_source(work, manifest.corpus, output.record):
                reasons[output.directory].append("made from another source")
        mine.sort(key=lambda output: output.current)  # among equals, the last one counts
        good = [output for output in mine if reasons.get(output.directory) == []]
        last = [output for output in mine if output.record]
        unfinished = [output for output in mine if not output.record]
        if good:
            result.append(State(want.stage, "up to date", (), good[-1]))
        elif last:
            result.append(State(want.stage, "stale", tuple(reasons[last[-1].directory]), last[-1]))
        elif unfinished:
            why = f"{len(unfinished[-1].done)} shards are done"
            result.append(State(want.stage, "unfinished", (why,), unfinished[-1]))
        else:
            result.append(State(want.stage, "missing", (), None))
    return result


def own_record(work: Path, manifest: Manifest, stage: str) -> Record:
    """Return the output of a stage that was made from a manifest's own source.

    That is what the stage made last, whatever the overrides were. If the stage has run since for another manifest of
    this name, it is the output that this manifest describes.

    Args:
        work: the manifest's folder.
        manifest: without the overrides that its outputs may have been made with.
        stage: a stage of `rpt data`.

    Raises:
        UserError: the stage has not run, or what it made last is another manifest's and this one's is not up to date.
    """
    last = current_record(work, stage)
    if _is_own(work, manifest.corpus, last):
        return last
    state = next(state for state in states(manifest, work, {}) if state.stage == stage)
    if state.state == "up to date" and state.output and state.output.record:
        return state.output.record
    raise UserError(
        f"the last output of `{stage}` was made from another source than this manifest's",
        where=last.directory,
        hint=f"run `rpt data` with this manifest again, or use the one of the name `{manifest.name}` that it was made "
        "with; give one of them another name",
    )


def _is_own(work: Path, corpus: CorpusConfig, record: Record) -> bool:
    """Whether an output of `ingest`, or of a stage after it, was made from the source of a manifest.

    Where its documents are gone, only an output that was pulled although this source was read here is another's.
    """
    made = [output.record for output in outputs(work) if output.stage == "ingest" and output.record]
    content = record.content if record.stage == "ingest" else record.inputs.get("documents")
    documents = next((ingest for ingest in made if ingest.content == content), None)
    if documents is None:
        return not (is_pulled(record) and source_pointer(work, corpus).exists())
    return is_of_source(work, corpus, documents)


def _reasons(want: ExpectedRecord, output: Output, upstream: Mapping[str, Record | None]) -> list[str]:
    """Why a complete output is not what is wanted; none if it is."""
    record = output.record
    assert record is not None
    reasons = differences({key: record.config.get(key) for key in want.config}, want.config)
    for name, stage in want.inputs.items():
        source = upstream.get(stage)
        if source is None:
            reasons.append(f"`{stage}` is not up to date")
        elif record.inputs.get(name) != source.content:
            reasons.append(f"made from another `{stage}`")
    return list(dict.fromkeys(reasons))


def _older(made: Iterable[Output], versions: Mapping[str, int]) -> list[str]:
    """Which of the outputs other versions of the stages' code have made."""
    records = [(output.stage, output.record.version) for output in made if output.record]
    return [f"code version of `{s}`: {v} → {versions[s]}" for s, v in records if versions.get(s, v) != v]


def size_of(path: Path) -> int:
    """Bytes of a file or of a folder's files."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def format_bytes(size: float) -> str:
    """
    Example:
        >>> format_bytes(0), format_bytes(1500), format_bytes(2_340_000)
        ('0 B', '1.5 kB', '2.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _last_change(path: Path) -> float:
    return max(p.stat().st_mtime for p in [path, *path.rglob("*")])
