"""A manifest's work folder: outputs of stages, their inputs, which are up to date, and which are not needed."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.base import differences
from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.config.manifest import PROXYS_OWN, Manifest
from pipeline.core.artifact import Record, current_record, is_current, read_record
from pipeline.core.completion import Completion, read_completion
from pipeline.core.files import size_of, status_of_all
from pipeline.core.marks import BEGUN, CERTIFICATE, PULLED, begun_inputs, is_pulled
from pipeline.core.parts import FOLDER as PARTS
from pipeline.core.pointers import is_of_policy, is_of_proxy, is_of_source, source_pointer
from pipeline.core.precision import proxy_dtype
from pipeline.core.progress import counted

IN_USE = 3600.0
"""Seconds after its last change during which an unnamed file may belong to a running worker."""


@dataclass(frozen=True)
class Output:
    """One folder `work/<manifest>/<stage>/<fingerprint>/`."""

    stage: str
    directory: Path
    record: Record | None
    """None if the stage is not complete."""
    done: tuple[Completion, ...]
    """Completions of the published shards of an output that is not complete."""
    current: bool
    """Whether it is the latest output of its stage."""
    inputs: Mapping[str, str]
    """Input hashes by name, whether it is complete or not."""

    @property
    def fingerprint(self) -> str:
        """Return the name of the folder."""
        return self.directory.name

    @property
    def bytes(self) -> int:
        """Return the bytes of everything in the folder."""
        return size_of(self.directory)

    def leftovers(self, now: float | None = None) -> list[Path]:
        """Return files that no completion names, and scratch folders, unless they changed within the last hour.

        Parts of shards that are not done are no leftovers.
        """
        done = self.record.completions() if self.record else self.done
        named = {entry.path for completion in done for entry in completion.files.values()} | {
            "record.json",
            "done",
            PULLED,
            BEGUN,
            CERTIFICATE,
        }
        if self.record is None:
            named.add(PARTS)
        before = (time.time() if now is None else now) - IN_USE
        found = [path for path in sorted(self.directory.iterdir()) if path.name not in named]
        return [path for path in found if _last_change(path) < before]


def outputs(work: Path) -> list[Output]:
    """Return all stages' outputs in a manifest's folder, sorted by stage and fingerprint."""
    found = []
    for directory in sorted({path.parent for name in ("record.json", "done") for path in work.glob(f"*/[!.]*/{name}")}):
        record = read_record(directory)
        numbers = sorted(int(path.stem) for path in (directory / "done").glob("*.json")) if record is None else ()
        done = tuple(filter(None, (read_completion(directory, number) for number in numbers)))
        inputs = record.inputs if record else begun_inputs(directory)
        found.append(Output(directory.parent.name, directory, record, done, is_current(directory), inputs))
    return found


def unneeded(found: Sequence[Output], trained_on: Iterable[str] = (), sources: Collection[Path] = ()) -> list[Output]:
    """Return the complete outputs that are not inputs of a latest output, an incomplete output or a run.

    Args:
        found: the outputs of one folder.
        trained_on: fingerprints that runs name (`made_from`).
        sources: outputs for other manifests of that name; they are kept, and so is what was made from them.
    """
    runs = set(trained_on)
    kept = [o for o in found if o.current or o.record is None or o.fingerprint in runs]
    theirs = [o for o in found if sources and not with_ancestors([o], found).keys().isdisjoint(sources)]
    needed = with_ancestors([*kept, *theirs], found)
    return [output for output in found if output.record is not None and output.directory not in needed]


def with_ancestors(some: Iterable[Output], found: Iterable[Output]) -> dict[Path, Output]:
    """Return some outputs and all outputs found that they were made from, by folder."""
    complete = [output for output in found if output.record is not None]
    waiting, reached = list(some), dict[Path, Output]()
    while waiting:
        output = waiting.pop()
        if output.directory in reached:
            continue
        reached[output.directory] = output
        for name in output.inputs.values():
            named = [o for o in complete if o.record and name in o.record.names]
            waiting += [o for o in named if o.current] or named  # of equal ones, the latest
    return reached


def made_from(run: Path) -> list[str]:
    """Return the fingerprints of the outputs that a run was trained on, from its `run.json`."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return [part["fingerprint"] for part in about.values() if isinstance(part, dict) and "fingerprint" in part]


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of runs in a folder."""
    return sorted(path.parent for path in folder.glob("*/run.json"))


# ------------------------------------------------------------------------------------------------ staleness


@dataclass(frozen=True)
class State:
    """The state of a stage for a manifest, and why."""

    stage: str
    state: str
    """`up to date`, `stale`, `unfinished` or `missing`."""
    why: tuple[str, ...]
    output: Output | None
    """The output that is up to date, else the latest one."""


@dataclass(frozen=True)
class ExpectedRecord:
    """The configuration and inputs that a stage's record must have to be up to date with a manifest."""

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """The stage that each input comes from, by the input's name."""


def expected_records(manifest: Manifest) -> list[ExpectedRecord]:
    """Return what each stage of `rpt data` must have been made from, in order."""
    fitted = manifest.proxy.made_here
    score: dict[str, Any] = {"score": manifest.score.identity()}
    if manifest.proxy.dtype != "auto" or fitted:  # otherwise scores of either format are used
        score["dtype"] = proxy_dtype(manifest.proxy, "score")
    made_with = {"documents": "ingest"} | ({"proxy": "proxy"} if fitted else {})
    return [
        ExpectedRecord("ingest", manifest.corpus.identity(), {}),
        *([ExpectedRecord("proxy", fitted.identity(), {"documents": "ingest"})] if fitted else []),
        ExpectedRecord("score", score, made_with),
        ExpectedRecord("select", manifest.select.identity(), {"documents": "ingest", "scores": "score"}),
        ExpectedRecord("materialize", manifest.materialize.identity(), {"documents": "ingest", "sites": "select"}),
    ]


def states(manifest: Manifest, work: Path, versions: Mapping[str, int]) -> list[State]:
    """Return the state of each stage of `rpt data`, and why.

    Configurations, code versions and input hashes are compared; the bytes of the source and of the models are not read,
    which is left to `rpt data`.

    Args:
        manifest: the manifest, with its overrides applied.
        work: the manifest's folder.
        versions: code version of each stage, by name.
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
        for output in mine:
            if output.record and (other := _another(manifest, work, output.record)):
                reasons[output.directory].append(other)
        mine.sort(key=lambda output: output.current)  # among equals, the latest one counts
        good = [output for output in mine if reasons.get(output.directory) == []]
        last = [output for output in mine if output.record]
        unfinished = [output for output in mine if not output.record]
        if good:
            result.append(State(want.stage, "up to date", (), good[-1]))
        elif last:
            result.append(State(want.stage, "stale", tuple(reasons[last[-1].directory]), last[-1]))
        elif unfinished:
            why = f"{counted(len(unfinished[-1].done), 'shard')} done"
            result.append(State(want.stage, "unfinished", (why,), unfinished[-1]))
        else:
            result.append(State(want.stage, "missing", (), None))
    return result


def _another(manifest: Manifest, work: Path, record: Record) -> str | None:
    """Return which model or source of a record is not the one that a manifest names, or None."""
    match record.stage:
        case "ingest":
            return None if is_of_source(work, manifest.corpus, record) else "made from another source"
        case "score":
            return None if is_of_proxy(work, manifest, record) else "made with another proxy"
        case "materialize":
            own = is_of_policy(work, manifest, record)
            return None if own else "made with another policy tokenizer"
        case _:
            return None


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


def with_policy_tokenizer(manifest: Manifest, work: Path) -> Manifest:
    """Return the manifest with the folder of the proxy's tokenizer, if its policy tokenizer is `proxy`.

    Args:
        manifest: with its overrides.
        work: the manifest's folder, which has the proxy if that is fitted.

    Raises:
        UserError: the proxy is not fitted yet.
    """
    config, proxy = manifest.materialize, manifest.proxy
    if config.policy_tokenizer != PROXYS_OWN:
        return manifest
    if proxy.made_here is not None:
        name, revision = str(own_record(work, manifest, "proxy").files("model")[0].path), None
    else:
        name, revision = (proxy.tokenizer, None) if proxy.tokenizer else (str(proxy.model), proxy.revision)
    update = {"policy_tokenizer": name, "policy_tokenizer_revision": revision}
    return manifest.model_copy(update={"materialize": config.model_copy(update=update)})


def _is_own(work: Path, corpus: CorpusConfig, record: Record) -> bool:
    """Return whether an output of `ingest`, or of a stage after it, was made from the source of a manifest.

    Where its documents are gone, only an output that was pulled although this source was read here is another's.
    """
    made = [output.record for output in outputs(work) if output.stage == "ingest" and output.record]
    content = record.content if record.stage == "ingest" else record.inputs.get("documents")
    documents = [ingest for ingest in made if content in ingest.names]
    if not documents:
        return not (is_pulled(record) and source_pointer(work, corpus).exists())
    return any(is_of_source(work, corpus, ingest) for ingest in documents)


def _reasons(want: ExpectedRecord, output: Output, upstream: Mapping[str, Record | None]) -> list[str]:
    """Return why a complete output is not up to date; empty if it is."""
    record = output.record
    assert record is not None
    reasons = differences({key: record.config.get(key) for key in want.config}, want.config)
    for name, stage in want.inputs.items():
        source = upstream.get(stage)
        if source is None:
            reasons.append(f"`{stage}` is not up to date")
        elif record.inputs.get(name) not in source.names:
            reasons.append(f"made from another `{stage}`")
    return list(dict.fromkeys(reasons))


def _older(made: Iterable[Output], versions: Mapping[str, int]) -> list[str]:
    """Return a line for every output that another version of the stage's code has made."""
    records = [(output.stage, output.record.version) for output in made if output.record]
    return [f"code version of `{s}`: {v} → {versions[s]}" for s, v in records if versions.get(s, v) != v]


def format_bytes(size: float) -> str:
    """Return a number of bytes with a decimal unit.

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
    """Return when a file, or anything in a folder, was last changed; 0 if it is gone."""
    return max((each.st_mtime for each in status_of_all(path)), default=0.0)
