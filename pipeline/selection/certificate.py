"""The certificate of a selection: what was measured of its proxy and its sites, and the verdict on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.config.selection import CertificateConfig
from pipeline.core.artifact import Counters
from pipeline.selection.classes import TOKEN_CLASSES
from pipeline.selection.proxy_measures import CALIBRATION_SCORES, EDGES, UNIT
from pipeline.selection.sites import BANDS, NO_BAND, TRAIN

FORMAT = 2
"""Version of the certificate, raised when a key changes its meaning."""

COVERED = 1.4
"""Entropy in nats up to which the 16 tokens that it is computed over hold nearly all probability."""
LEAST_DOCUMENTS = 10
"""With fewer documents there is too little to count the others by."""

Verdict = Literal["pass", "warn", "refuse", "too small to judge"]


@dataclass(frozen=True)
class Finding:
    """A rule that a selection breaks."""

    rule: str
    level: Literal["warn", "refuse"]
    says: str
    """What was measured, and what it means."""


def certificate(
    config: CertificateConfig,
    bits: Mapping[str, Any],
    calibration: pa.Table,
    counters: Counters,
    agreement: Mapping[str, Any] | None = None,
    *,
    made_here: bool = False,
) -> dict[str, Any]:
    """Return the certificate as JSON values.

    Args:
        config: the bounds.
        bits: the result of `bits_per_byte`.
        calibration: a table of `CALIBRATION`.
        counters: those of the select record.
        agreement: the result of `agreement`, if there is a second selection.
        made_here: True if the proxy was made from the corpus, so that it has read what pairs of tokens are counted in.

    Returns:
        `bits_per_byte`, `calibration`, `kept` (by band and token class), `hard`, `names_and_digits`, `agreement`,
        `findings` (rules that are broken) and `verdict`.
    """
    found: dict[str, Any] = {
        "format": FORMAT,
        "bits_per_byte": dict(bits),
        "calibration": _calibration(calibration),
        "kept": {
            "band": _kept(counters, "band", (NO_BAND, *BANDS)),
            "class": _kept(counters, "class", TOKEN_CLASSES),
        },
        "hard": _hard(counters),
        "names_and_digits": _names_and_digits(counters),
        "agreement": dict(agreement) if agreement else None,
        "bounds": config.identity(),
    }
    findings = _findings(config, found, {"unigram", "bigram"} if made_here else {"unigram"})
    return found | {"findings": [asdict(finding) for finding in findings], "verdict": _verdict(config, found, findings)}


def _calibration(table: pa.Table) -> dict[str, Any]:
    """Return positions and means by bin, the excess of surprise over entropy, and the slope of surprise over the bins.

    The excess is the mean over positions below `COVERED`: above it a calibrated proxy has one as well.
    """
    positions_B = table["positions"].to_numpy()
    sums = {name: table[name].to_numpy() / UNIT for name in CALIBRATION_SCORES}
    bins = []
    for b, n in enumerate(positions_B.tolist()):
        means = [round(float(sums[name][b]) / n, 4) if n else None for name in CALIBRATION_SCORES]
        named = dict(zip(("entropy", "entropy_partial", "surprise"), means, strict=True))
        bins.append({"from": float(EDGES[b]), "positions": n, **named})
    low_B, seen_B = EDGES < COVERED, positions_B > 0
    low, weight_B = int(positions_B[low_B].sum()), positions_B[seen_B]
    excess = round(float((sums["nll"] - sums["entropy"])[low_B].sum()) / low, 4) + 0.0 if low else None  # no −0
    slope = _slope(sums["entropy"][seen_B] / weight_B, sums["nll"][seen_B] / weight_B, weight_B)
    return {"positions": int(positions_B.sum()), "bins": bins, "excess": excess, "slope": slope}


def _slope(x_B: np.ndarray, y_B: np.ndarray, weight_B: np.ndarray) -> float | None:
    """Return the slope of the weighted least-squares line, None if all x are equal."""
    if len(x_B) < 2:
        return None
    x_mean, y_mean = np.average(x_B, weights=weight_B), np.average(y_B, weights=weight_B)
    spread = float((weight_B * (x_B - x_mean) ** 2).sum())
    return round(float((weight_B * (x_B - x_mean) * (y_B - y_mean)).sum()) / spread, 4) if spread else None


def _kept(counters: Counters, group: str, values: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return the training positions that could be kept, and the sites, by band or class."""
    rows = {
        value: {kind: counters.get(f"{TRAIN}{kind}.{group}.{value}", 0) for kind in ("selectable", "sites")}
        for value in values
    }
    return {value: row for value, row in rows.items() if row["selectable"]}


def _hard(counters: Counters) -> dict[str, Any]:
    """Return how many positions pass `where`, what `top_fraction` keeps of those left to it, and the product of both.

    These are the rules of the corpus that look at how hard a position is.
    """
    selectable = sum(counters.get(f"{TRAIN}selectable.band.{band}", 0) for band in (NO_BAND, *BANDS))
    passed = counters.get(f"{TRAIN}passed", 0)
    later = ("strata", "mixture", "corpus_cap")
    kept = counters["kept.train"] + sum(counters.get(f"dropped.{reason}", 0) for reason in later)
    top = _share(kept, kept + counters.get("dropped.top_fraction", 0))
    share = None if not selectable or top is None else round(passed / selectable * top, 4)
    return {"selectable": selectable, "passed": passed, "top": top, "share": share}


def _names_and_digits(counters: Counters) -> dict[str, Any]:
    sites = counters["kept.train"]
    digits, names = (counters.get(f"{TRAIN}sites.{of}", 0) for of in ("class.digit", "names"))
    return {"sites": sites, "digits": digits, "names": names, "share": _share(digits + names, sites)}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


# ------------------------------------------------------------------------------------------------------ verdict


def _findings(config: CertificateConfig, found: Mapping[str, Any], needed: Set[str]) -> list[Finding]:
    """Return the rules that are broken, those that refuse first: a proxy must be better than what is `needed`."""
    bits, calibration = found["bits_per_byte"], found["calibration"]
    against = {"unigram": "token frequencies alone", "bigram": "pairs of tokens alone", "zlib": "zlib"}
    findings = [
        Finding(name, "refuse" if name in needed else "warn",
                f"the proxy needs {bits['proxy']:.3f} bits/byte, {than} {bits[name]:.3f}")
        for name, than in against.items()
        if _exceeds(bits["proxy"], bits[name], or_equals=True)
    ]  # fmt: skip
    if _exceeds(calibration["excess"], config.excess_surprise):
        findings.append(Finding("excess_surprise", "warn", (
            f"the true token surprises the proxy by {calibration['excess']:.2f} nats more than its entropy says "
            f"(bound {config.excess_surprise:g})"
        )))  # fmt: skip
    if _exceeds(config.least_slope, calibration["slope"]):
        findings.append(Finding("least_slope", "warn", (
            f"surprise rises by only {calibration['slope']:.2f} nats per nat of entropy (bound {config.least_slope:g})"
        )))  # fmt: skip
    shares: dict[str, Callable[[str], str]] = {
        "hard_share": (
            "the rule keeps {} of the positions that it could keep as hard: it hardly selects. A threshold suits the "
            "proxy that it was chosen for; `select.top_fraction` keeps the hardest share of any"
        ).format,
        "names_and_digits": "{} of training sites are names and digits, mostly unguessable".format,
    }
    for name, key in (("hard_share", "hard"), ("names_and_digits", "names_and_digits")):
        share, bound = found[key]["share"], getattr(config, name)
        if _exceeds(share, bound):
            told = shares[name](f"{100 * share:.0f} %")
            findings.append(Finding(name, "warn", f"{told} (bound {100 * bound:.0f} %)"))
    if found["agreement"] and _exceeds(config.least_agreement, found["agreement"]["kappa"]):
        kappa = found["agreement"]["kappa"]
        findings.append(Finding("least_agreement", "warn", (
            f"a second selection agrees with a kappa of only {kappa:.2f} (bound {config.least_agreement:g})"
        )))  # fmt: skip
    return findings


def _exceeds(value: float | None, bound: float | None, *, or_equals: bool = False) -> bool:
    """Return whether a value is over its bound; False if one of them was not measured."""
    return value is not None and bound is not None and (value > bound or (or_equals and value == bound))


def _verdict(config: CertificateConfig, found: Mapping[str, Any], findings: list[Finding]) -> Verdict:
    if found["calibration"]["positions"] < config.least_tokens or found["bits_per_byte"]["documents"] < LEAST_DOCUMENTS:
        return "too small to judge"
    levels = {finding.level for finding in findings}
    return "refuse" if "refuse" in levels else "warn" if levels else "pass"
