"""Materialize: turn every site into a training example in the policy's tokens.

Input:   `documents` and `sites`, shard by shard; the policy's tokenizer.
Output:  `train` and `validation` (pipeline/shards/schema.py), in the same shards, sorted by (document, position);
         a shard without rows of a split publishes no table of that split.
Command: rpt materialize data_manifests/<name>.yaml

A site that does not begin a policy token is counted as `dropped.not_a_policy_boundary`, those of a document that the
policy's tokenizer does not reproduce byte for byte as `dropped.policy_tokenizer_not_lossless`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest, MaterializeConfig
from pipeline.core.artifact import Counters, Record, Shard, fingerprint, write_pointer
from pipeline.core.executor import Executor
from pipeline.core.parquet import read_table
from pipeline.core.pointers import policy_pointer
from pipeline.core.stage import Stage, run_stage, shards_of
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.shards.examples import examples
from pipeline.shards.writer import write_shards

VERSION = 5


def run(config: MaterializeConfig, shard: Shard, out: Path) -> Counters:
    """Write the training examples of one shard of documents and sites."""
    tokenizer = _tokenizer(config.policy_tokenizer, config.policy_tokenizer_revision)
    documents = read_table(shard.files["documents"], ["doc_id", "text"])
    made = examples(config, tokenizer, documents, read_table(shard.files["sites"]))
    write_shards(out, made, config.row_group, shard.details["metadata"])
    return made.counters


MATERIALIZE = Stage("materialize", VERSION, run, unit="sites")


def materialize(
    manifest: Manifest, documents: Record, scores: Record, sites: Record, *, work: Path, executor: Executor
) -> Record:
    """Bring the shards up to date.

    Raises:
        UserError: the policy's tokenizer cannot be read, or no training example is left.
    """
    config = manifest.materialize
    digest = _tokenizer(config.policy_tokenizer, config.policy_tokenizer_revision).digest
    inputs = {
        "documents": documents.text_content,
        "scores": scores.fingerprint,
        "sites": sites.content,
        "policy_tokenizer": digest,
    }
    metadata = {
        "rpt.fingerprint": fingerprint(MATERIALIZE.name, VERSION, config.identity(), inputs),
        "rpt.version": str(VERSION),
        "rpt.policy_tokenizer": digest,
        "rpt.scores": canonical_json({"fingerprint": scores.fingerprint, "inputs": dict(scores.inputs)}),
        "rpt.sites": canonical_json({"fingerprint": sites.fingerprint, "config": dict(sites.config)}),
    }
    shards = shards_of({"documents": documents, "sites": sites}, {"metadata": metadata})
    record = run_stage(MATERIALIZE, config, shards, inputs, work, executor)
    write_pointer(policy_pointer(work, manifest), record.directory)
    if not record.counters["kept.train"]:
        dropped = ", ".join(
            f"{n} {count:,}" for n, count in record.counters.items() if n.startswith("dropped.") and count
        )
        raise UserError(
            "no training example is left",
            where=config.policy_tokenizer,
            hint=f"of {record.counters['sites']:,} sites: {dropped}; check `materialize.policy_tokenizer`",
        )
    return record


@lru_cache(maxsize=1)
def _tokenizer(name: str, revision: str | None) -> CorpusTokenizer:
    return CorpusTokenizer.load(name, revision)
