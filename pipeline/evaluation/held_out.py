"""Which held-out sites an evaluation asks for, and what its tables group them by."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import InputFile, Record
from pipeline.core.invisible import escape_invisible
from pipeline.core.parquet import read_table
from pipeline.core.random_keys import random_key
from pipeline.selection.metadata import can_group, column_of
from pipeline.shards.reader import ShardReader, Site
from pipeline.shards.schema import SHARDS


@dataclass(frozen=True)
class HeldOut:
    """The N held-out sites of an evaluation."""

    sites_N: list[Site]
    sets: dict[str, list[int]]
    """Indices of the sites of each set: `headline`, those that match `evaluate.where`, and `all`, any sites."""
    classes_N: list[str]
    """Class of each site's token."""
    labels: dict[str, list[str]]
    """Metadata of each site's document, by column."""


def choose_sites(site_ids: Iterable[str], count: int, seed: int) -> list[int]:
    """Return sorted indices of `count` sites (all, if there are fewer) chosen by a hash of (seed, site_id).

    A smaller choice is always a subset of a larger one, so accuracy during and after training is measured on nested
    sets. Memory holds the chosen sites only.

    Example:
        >>> sites = [f"document-{i}" for i in range(100)]
        >>> set(choose_sites(sites, 3, seed=0)) < set(choose_sites(sites, 10, seed=0))
        True
    """
    keys = ((random_key("evaluate", seed, site_id), index) for index, site_id in enumerate(site_ids))
    return sorted(index for _, index in heapq.nsmallest(count, keys))


def choose_held_out(files: Sequence[InputFile], where: str, count: int, seed: int) -> list[Site]:
    """Return at most `count` of the sites in validation shards that match `where`, by `choose_sites`.

    Raises:
        UserError: `where` is invalid, or no site matches.
    """
    reader = ShardReader(files, where)
    return [reader[i] for i in choose_sites(reader.site_ids(), count, seed)]


def held_out(shards: Record, recipe: Recipe) -> HeldOut:
    """Return the sites to evaluate: at most `evaluate.sites` per set, chosen by `choose_sites`.

    Raises:
        UserError: the shards have no held-out site, or none matches `evaluate.where`.
    """
    files = shards.files("validation")
    if not files:
        raise UserError(
            "the shards have no held-out site",
            where=shards.directory,
            hint="loosen `select.validation_where`, or hold out more documents with `corpus.validation`",
        )
    where = {"headline": recipe.evaluate.where} if recipe.evaluate.where != "true" else {}
    chosen: dict[str, list[Site]] = {}
    for name, expression in (where | {"all": "true"}).items():
        chosen[name] = choose_held_out(files, expression, recipe.evaluate.sites, recipe.seed)
    by_id = {site.site_id: site for part in chosen.values() for site in part}
    sites = sorted(by_id.values(), key=lambda site: (site.doc_id, site.position))
    index = {site.site_id: i for i, site in enumerate(sites)}
    sets = {name: sorted(index[site.site_id] for site in part) for name, part in chosen.items()}
    return HeldOut(sites, sets, *site_labels(shards, sites))


def site_labels(shards: Record, sites: Sequence[Site]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the class of each site's token, and by column the sites' declared metadata as labels.

    A column of lists or objects, or whose values are no groups (`can_group`), is left out, as in the audit.
    """
    rows: dict[str, dict[str, Any]] = {}
    columns: list[str] = []
    wanted = pa.array([site.site_id for site in sites], pa.string())
    for file in shards.files("validation"):
        schema = pq.read_schema(file.verified())
        columns = [field.name for field in list(schema)[len(SHARDS) :] if column_of(field).whole]
        table = read_table(file, ["site_id", "token_class", *columns])
        table = table.filter(pc.is_in(table["site_id"], wanted))
        rows |= {row["site_id"]: row for row in table.to_pylist()}
    labels = {column: [_label(rows[site.site_id][column]) for site in sites] for column in columns}
    groups = {column: found for column, found in labels.items() if can_group(set(found))}
    return [rows[site.site_id]["token_class"] for site in sites], groups


def _label(value: str | float | bool | None) -> str:
    """Return a metadata value as it appears in the report, an integer without its decimal point."""
    if value is None:
        return "(no value)"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else escape_invisible(value)
