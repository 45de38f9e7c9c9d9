"""Certificate: measure what a selection rests on, and judge it.

Input:   `documents`, `scores` and the record of `select`.
Output:  `certificate_scores`, per shard: `calibration` (sums by bin of entropy) and `sample` (documents on which bits
         per byte are compared); `certificate_bits`: one file of bits per byte; and `certificate.json` in the
         selection's folder. The first two do not depend on the rule, so another rule measures nothing again.
Command: rpt select data_manifests/<name>.yaml [--accept]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.base import Config
from pipeline.config.errors import RefusedError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, published_record
from pipeline.core.executor import Executor
from pipeline.core.marks import read_certificate, write_certificate
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.core.stage import Stage, run_stage, shards_of
from pipeline.selection import proxy_measures
from pipeline.selection.agreement import agreement
from pipeline.selection.certificate import certificate
from pipeline.selection.positions import DOCUMENT_COLUMNS
from pipeline.selection.sites import TRAIN

VERSION = 1


class MeasureConfig(Config):
    """The part of the manifest that the measurements need."""

    sample_tokens: int


def run_scores(config: MeasureConfig, shard: Shard, out: Path) -> Counters:
    """Write one shard's sums by bin of entropy, and its documents in the sample."""
    scores = read_table(shard.files["scores"], proxy_measures.SAMPLE_SCORES)
    documents = read_table(shard.files["documents"], DOCUMENT_COLUMNS)
    share = config.sample_tokens / max(shard.details["tokens"], 1)
    tables = {
        "calibration": proxy_measures.calibration(scores),
        "sample": proxy_measures.sample(documents, scores, share),
    }
    for name, table in tables.items():
        with parquet_writer(out / f"{name}.parquet", table.schema) as writer:
            writer.write_table(table)
    return {"tokens": pa.compute.sum(pa.compute.list_value_length(scores["token_ids"])).as_py() or 0}


def run_bits(config: MeasureConfig, shard: Shard, out: Path) -> Counters:
    """Write the bits per byte of the proxy and of what it must beat, on the sample of all shards."""
    sampled = pa.concat_tables([read_table(file) for file in shard.files.values()])
    found = proxy_measures.bits_per_byte(sampled)
    (out / "bits.json").write_text(json.dumps(found), encoding="utf-8")
    return {"documents": found["documents"], "tokens": found["tokens"]}


SCORES = Stage("certificate_scores", VERSION, run_scores, unit="tokens")
BITS = Stage("certificate_bits", VERSION, run_bits, unit="tokens")


def certify(
    manifest: Manifest, documents: Record, scores: Record, sites: Record, *, work: Path, executor: Executor,
    accept: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the certificate of a selection into its folder, and return it.

    Args:
        manifest: with its overrides.
        documents: record of ingest.
        scores: record of score.
        sites: record of select.
        work: the manifest's folder.
        executor: runs the measurements.
        accept: use the selection although its certificate refuses it. It is recorded, and holds for this selection from
            then on.

    Raises:
        UserError: the second selection is none, or is one of other documents.
        RefusedError: the certificate refuses the selection, and nobody has accepted it.
    """
    config = MeasureConfig(sample_tokens=manifest.select.certificate.sample_tokens)
    details = {"tokens": sites.counters["tokens"]}
    shards = shards_of({"documents": documents, "scores": scores}, details)
    inputs = {"documents": documents.text_content, "scores": scores.content}
    measured = run_stage(SCORES, config, shards, inputs, work, executor)
    listed = {f"sample-{i}": file for i, file in enumerate(measured.files("sample"))}
    bits = run_stage(BITS, config, [Shard(0, listed, {})], {"measured": measured.content}, work, executor)
    judged = manifest.select.certificate
    found = certificate(
        judged,
        json.loads(bits.files("bits")[0].verified().read_text(encoding="utf-8")),
        proxy_measures.add_calibrations([read_table(file) for file in measured.files("calibration")]),
        sites.counters,
        _agreement(sites, Path(judged.second)) if judged.second else None,
        made_here=manifest.proxy.made_here is not None,
    )
    before = read_certificate(sites)
    found["accepted"] = accept or before == found | {"accepted": True}
    write_certificate(sites, found)
    if found["verdict"] == "refuse" and not found["accepted"]:
        raise _refused(found, sites)
    return found


def _agreement(sites: Record, second: Path) -> dict[str, Any]:
    selectable = sum(n for name, n in sites.counters.items() if name.startswith(f"{TRAIN}selectable.band."))
    return agreement(sites, published_record(second), selectable)


def _refused(found: dict[str, Any], sites: Record) -> RefusedError:
    says = "; ".join(finding["says"] for finding in found["findings"] if finding["level"] == "refuse")
    return RefusedError(
        f"the certificate refuses this selection: {says}",
        where=sites.directory,
        hint="choose another proxy (`--set proxy=auto` needs no model), or add --accept to use the sites as they are",
    )
