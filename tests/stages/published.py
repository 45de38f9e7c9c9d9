"""Records of upstream stages with tables made by hand, published as the runner publishes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pipeline.config.base import Config
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.parquet import parquet_writer
from pipeline.core.stage import Stage, run_stage

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class InProcess:
    """The simplest executor: calls the function here, shard by shard."""

    devices = ("CPU",)

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Sequence[ItemT],
        *,
        accelerated: bool = False,
        planned: int | None = None,
    ) -> Iterator[ResultT]:
        yield from map(function, items)


def publish_tables(
    work: Path, stage: str, shards: Sequence[Mapping[str, pa.Table]], config: Config | None = None
) -> Record:
    """A complete stage whose shard i has the tables shards[i]. `config`: what its record says it was made with."""

    def run(config: Config, shard: Shard, out: Path) -> Counters:
        for name, table in shards[shard.index].items():
            with parquet_writer(out / f"{name}.parquet", table.schema) as writer:
                writer.write_table(table)
        return {}

    plan = [Shard(i, {}, {}) for i in range(len(shards))]
    return run_stage(Stage(stage, 1, run), config or Config(), plan, {"by": "hand"}, work, InProcess())


def cut(table: pa.Table, per_shard: int) -> list[pa.Table]:
    """The table in shards of so many rows."""
    return [table.slice(begin, per_shard) for begin in range(0, table.num_rows, per_shard)]
