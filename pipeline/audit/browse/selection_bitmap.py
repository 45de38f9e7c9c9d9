"""The sites of a selection as one bit per position of the index, so that selections compare as fast as rules.

File of a shard: `kept.bin`, the bits of its positions in the order of the index, least significant bit first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.audit.browse.index import COLUMNS
from pipeline.config.base import Config
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.executor import Executor
from pipeline.core.parquet import read_table
from pipeline.core.stage import Stage, run_stage, shards_of

VERSION = 1


def kept(index: Record, sites: Record, *, work: Path, executor: Executor) -> Record:
    """Run the stage that writes the bitmap of one selection; counter `sites`."""
    shards = shards_of({"documents": index, "document": index, "position": index, "sites": sites}, {})
    inputs = {"index": index.content, "sites": sites.content}
    return run_stage(Stage("browse_kept", VERSION, run, unit="sites"), Config(), shards, inputs, work, executor)


def run(config: Config, shard: Shard, out: Path) -> Counters:
    """Write the bitmap of one shard from its part of the index and its sites."""
    documents = pl.Series(read_table(shard.files["documents"], ["doc_id"])["doc_id"].to_pylist(), dtype=pl.String)
    sites = pl.DataFrame(pl.from_arrow(read_table(shard.files["sites"], ["doc_id", "position"])))
    row = sites["doc_id"].replace_strict(documents, pl.int_range(len(documents), eager=True), return_dtype=pl.UInt32)
    site_keys = np.sort(_keys(row.to_numpy(), sites["position"].to_numpy()))
    document, position = (np.fromfile(shard.files[name].verified(), COLUMNS[name]) for name in ("document", "position"))
    place = np.searchsorted(site_keys, keys := _keys(document, position))
    bits = np.zeros(len(keys), dtype=bool)
    if len(site_keys):
        bits = site_keys[np.minimum(place, len(site_keys) - 1)] == keys
    (out / "kept.bin").write_bytes(np.packbits(bits, bitorder="little").tobytes())
    return {"sites": int(bits.sum())}


def _keys(document: np.ndarray, position: np.ndarray) -> np.ndarray:
    return (document.astype(np.int64) << 32) | position
