"""The figures of a study, computed from the responses, answers and metrics that its jobs saved.

Shape names: S seeds, N sites (or questions); every arm has the same sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.config.study import StudyConfig
from pipeline.evaluation.accuracy import band_members
from pipeline.evaluation.intervals import to_json_value
from pipeline.evaluation.patterns import compare_patterns
from pipeline.evaluation.samples import pass_at, powers_of_two
from pipeline.evaluation.scaling import scaling_of
from pipeline.evaluation.study.claims import judge
from pipeline.evaluation.study.multiseed import difference_over_seeds, share_over_seeds
from pipeline.grpo.run.metrics import read_metrics

Hits = NDArray[np.bool_]

TRACES = 3


@dataclass(frozen=True)
class Arm:
    """Output folders of one arm's jobs."""

    name: str
    evaluation: Path
    """Folder with `responses.parquet` of the policies of all seeds (of the one policy, if it was not trained)."""
    runs: Sequence[Path] = ()
    """Folders with `metrics.jsonl`, one per seed."""
    finetuned: Sequence[Path] = ()
    """Folders with `answers.parquet`, one per seed."""


@dataclass(frozen=True)
class Sites:
    """Held-out sites of a set, in the same order for all arms."""

    frame: pl.DataFrame
    """Columns `site_id`, `doc_id`, `entropy`, `target`; sorted by `site_id`."""

    @property
    def documents_N(self) -> NDArray[np.str_]:
        """Return the documents [N] of the sites."""
        return self.frame["doc_id"].to_numpy().astype(str)


def summarize_study(config: StudyConfig, arms: Sequence[Arm], recipe: Recipe, bands: BandsConfig) -> dict[str, Any]:
    """Return every figure of the report, as JSON values.

    Args:
        config: The study.
        arms: Its arms; the policy before training comes first.
        recipe: The recipe that the evaluations used.
        bands: Thresholds in nats.

    Returns:
        `sets` (accuracy, differences and chance level by set of sites and band), `compute`, `scaling`, `finetuned`,
        `patterns`, `traces`, and the `claims` with their verdicts.
    """
    responses = {arm.name: read_responses(arm.evaluation / "responses.parquet") for arm in arms}
    base = arms[0].name
    found: dict[str, Any] = {
        "study": config.name,
        "description": config.description,
        "seeds": len(config.seeds),
        "base": base,
        "reference": config.reference,
        "arms": [arm.name for arm in arms],
        "where": recipe.evaluate.where,
        "bands": bands.model_dump(),
        "sets": {
            name: _accuracy(responses, name, bands, config.reference, base)
            for name in sorted(set(responses[base]["sets"].explode().drop_nulls().to_list()), reverse=True)
        },
        "compute": {arm.name: compute_of(arm.runs) for arm in arms if arm.runs},
        "scaling": scaling_of(
            [run / "metrics.jsonl" for arm in arms if arm.name == config.reference for run in arm.runs],
            list(bands.model_dump()),
        ),
        "finetuned": _finetuned({arm.name: arm.finetuned for arm in arms if arm.finetuned}, config.reference),
        "patterns": patterns_of(responses[config.reference], responses[base]),
        "traces": traces_of(responses[config.reference], responses[base]),
    }
    found["headline"] = next(iter(found["sets"]))  # "headline" sorts before "all" in reverse order
    return found | {"claims": [asdict(claim) for claim in judge(found)]}


def read_responses(path: Path) -> pl.DataFrame:
    """Return the table of responses of an evaluation.

    Raises:
        UserError: The file does not exist.
    """
    if not path.is_file():
        raise UserError("an evaluation of the study is missing", where=path, hint="run `rpt study` again")
    return pl.read_parquet(path)


def hits_of(responses: pl.DataFrame, reading: str, sites: Sites) -> Hits:
    """Return hits [S, N] of an arm's policies, in the order of their names, at the sites."""
    rows = responses.filter((pl.col("reading") == reading) & (pl.col("sample") == 0))
    by_policy = rows.partition_by("policy", as_dict=True)
    return np.stack(
        [
            sites.frame.join(by_policy[key], on="site_id", how="left", maintain_order="left")["hit"].to_numpy()
            for key in sorted(by_policy)
        ]
    ).astype(bool)


def sample_statistics(responses: pl.DataFrame, sites: Sites) -> dict[str, NDArray[np.float64]]:
    """Return `mean` and `pass@k` [S, N] of an arm's sampled responses; empty if none were sampled."""
    rows = responses.filter(pl.col("reading") == "sampled")
    if rows.is_empty():
        return {}
    chosen = rows.join(sites.frame.select("site_id"), on="site_id").sort("policy", "site_id", "sample")
    hits_SNK = chosen["hit"].to_numpy().reshape(rows["policy"].n_unique(), len(sites.frame), -1)
    several = powers_of_two(hits_SNK.shape[2])[1:]
    return {
        "mean": hits_SNK.mean(axis=2),
        **{f"pass@{k}": np.stack([pass_at(k, hits_NK) for hits_NK in hits_SNK]) for k in several},
    }


def sites_of(responses: pl.DataFrame, name: str) -> Sites:
    """Return the sites of a set."""
    rows = responses.filter(pl.col("sets").list.contains(name))
    return Sites(rows.select("site_id", "doc_id", "entropy", "target").unique("site_id").sort("site_id"))


def _accuracy(
    responses: Mapping[str, pl.DataFrame], name: str, bands: BandsConfig, reference: str, base: str
) -> dict[str, Any]:
    """Return the accuracy of every arm at a set of sites, and differences between arms."""
    sites = sites_of(responses[base], name)
    members = band_members(sites.frame["entropy"].to_list(), bands)
    hits = {
        (arm, reading): hits_of(frame, reading, sites)
        for arm, frame in responses.items()
        for reading in ("direct", "reasoning")
    }
    documents_N = sites.documents_N

    def share(key: tuple[str, str]) -> dict[str, Any]:
        return {
            b: to_json_value(share_over_seeds(hits[key][:, own_N], documents_N[own_N])) for b, own_N in members.items()
        }

    def gain(own: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
        return {
            b: to_json_value(difference_over_seeds(hits[own][:, own_N], hits[other][:, own_N], documents_N[own_N]))
            for b, own_N in members.items()
        }

    def by_seed(key: tuple[str, str]) -> dict[str, list[float]]:
        return {b: hits[key][:, own_N].mean(axis=1).tolist() if own_N.any() else [] for b, own_N in members.items()}

    # Pairs (reading, baseline) in the order in which the report lists them.
    pairs = [((base, "reasoning"), (base, "direct"))]
    pairs += [((reference, "reasoning"), (base, reading)) for reading in ("direct", "reasoning")]
    pairs += [((arm, "reasoning"), (base, "reasoning")) for arm in responses if arm not in (base, reference)]
    pairs += [((arm, "reasoning"), (base, "direct")) for arm in responses if arm not in (base, reference)]
    pairs += [((arm, "direct"), (base, "direct")) for arm in responses if arm != base]
    pairs += [((reference, "reasoning"), (a, r)) for a, r in hits if a not in (base, reference) and r == "reasoning"]
    pairs += [((reference, "reasoning"), (arm, "direct")) for arm in responses if arm not in (base, reference)]
    return {
        "sites": len(sites.frame),
        "documents": len(set(documents_N)),
        "band_sites": {band: int(own_N.sum()) for band, own_N in members.items()},
        "chance": {band: chance_of(sites.frame["target"].filter(pl.Series(own_N))) for band, own_N in members.items()},
        "accuracy": {f"{reading} {arm}": share((arm, reading)) for arm, reading in hits},
        "samples": {
            f"{statistic} {arm}": {
                b: to_json_value(share_over_seeds(values_SN[:, own_N], documents_N[own_N]))
                for b, own_N in members.items()
            }
            for arm, frame in responses.items()
            for statistic, values_SN in sample_statistics(frame, sites).items()
        },
        "by_seed": {f"{reading} {arm}": by_seed((arm, reading)) for arm, reading in hits},
        "differences": [
            {"reading": f"{own[1]} {own[0]}", "baseline": f"{other[1]} {other[0]}", "bands": gain(own, other)}
            for own, other in pairs
        ],
    }


def chance_of(targets_N: pl.Series) -> float | None:
    """Return the accuracy of the best constant answer: the share of the most frequent target; None without sites.

    Example:
        >>> chance_of(pl.Series([b"7", b"7", b" red", b"4"])), chance_of(pl.Series([], dtype=pl.Binary))
        (0.5, None)
    """
    counts = Counter(targets_N.to_list())
    return max(counts.values()) / len(targets_N) if counts else None


def compute_of(runs: Sequence[Path]) -> dict[str, float]:
    """Return FLOPs, device-seconds and trained tokens: means over runs of the last line of their metrics."""
    last = [read_metrics(run / "metrics.jsonl")[-1] for run in runs]
    return {name: float(np.mean([row[f"compute/{name}"] for row in last])) for name in ("flops", "seconds", "tokens")}


def _finetuned(runs: Mapping[str, Sequence[Path]], reference: str) -> dict[str, Any]:
    """Return accuracy on held-out questions before and after RL, and the reference arm's differences to others."""
    answers = {arm: [pl.read_parquet(run / "answers.parquet") for run in own] for arm, own in runs.items()}
    if not answers:
        return {}
    common = set.intersection(*(set(frame["site_id"]) for own in answers.values() for frame in own))
    order = pl.DataFrame({"site_id": sorted(common)})
    hits = {
        (arm, when): np.stack(
            [
                order.join(frame.filter(policy=when), on="site_id", how="left", maintain_order="left")["hit"].to_numpy()
                for frame in own
            ]
        ).astype(bool)
        for arm, own in answers.items()
        for when in ("before", "after")
    }
    questions_N = np.array(sorted(common))
    others = [arm for arm in answers if arm != reference and reference in answers]
    return {
        "questions": len(common),
        "accuracy": {
            arm: {when: to_json_value(share_over_seeds(hits[arm, when], questions_N)) for when in ("before", "after")}
            for arm in answers
        },
        "gains": {
            arm: to_json_value(difference_over_seeds(hits[arm, "after"], hits[arm, "before"], questions_N))
            for arm in answers
        },
        "differences": {
            arm: {
                when: to_json_value(difference_over_seeds(hits[reference, when], hits[arm, when], questions_N))
                for when in ("before", "after")
            }
            for arm in others
        },
    }


def patterns_of(reference: pl.DataFrame, base: pl.DataFrame) -> dict[str, Any]:
    """Compare keyword groups in the reasoning of the reference arm's first policy and of the untrained policy."""
    after, before = (_reasoning(frame) for frame in (reference, base))
    return compare_patterns(after["response"].to_list(), before["response"].to_list(), after["doc_id"].to_list())


def traces_of(reference: pl.DataFrame, base: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the highest-entropy sites at which only the trained policy is right, with both responses."""
    both = _reasoning(reference).join(_reasoning(base), on="site_id", suffix="_before")
    chosen = both.filter(pl.col("hit") & ~pl.col("hit_before")).sort("entropy", "site_id", descending=[True, False])
    return [
        {
            "site_id": row["site_id"],
            "entropy": row["entropy"],
            "after": row["response"],
            "before": row["response_before"],
        }
        for row in chosen.head(TRACES).to_dicts()
    ]


def _reasoning(responses: pl.DataFrame) -> pl.DataFrame:
    rows = responses.filter((pl.col("reading") == "reasoning") & (pl.col("sample") == 0))
    return rows.filter(pl.col("policy") == rows["policy"].min()).sort("site_id")
