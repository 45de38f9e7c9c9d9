"""The paper's claims and its critics' questions, each with a rule that turns intervals into a verdict.

`reproduced`: in every band with sites the 95 % interval of the difference lies on the claimed side of 0. `in part`: in
some bands. `not reproduced`: in no band. `not testable`: the study has no data for the claim, or fewer than three
seeds. The verdicts hold for the size of the studied model only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.study import LARGER
from pipeline.evaluation.patterns import PAPER_CHANGE
from pipeline.evaluation.report import points

REPRODUCED, IN_PART, NOT, UNTESTED = (
    "reproduced here at toy scale",
    "reproduced in part",
    "not reproduced",
    "not testable",
)
MIN_SEEDS = 3
BEHIND = 0.05
"""Share of the sites by which a policy may be behind another one and still predict as well."""
MIN_USE = 0.01
"""Share of responses with a keyword below which a group is too rare to compare."""


@dataclass(frozen=True)
class Claim:
    """A claim, its verdict, and the numbers behind the verdict."""

    claim: str
    source: str
    """Table or figure of the paper that makes the claim, or who asks for it."""
    verdict: str
    why: str
    """The numbers behind the verdict, as text."""


def judge(study: Mapping[str, Any]) -> list[Claim]:
    """Return the verdicts of a study, given the figures of `study.summarize_study`."""
    claims = list(_claims(study))
    if study["seeds"] >= MIN_SEEDS:
        return claims
    few = f"{study['seeds']} seeds, at least {MIN_SEEDS} are needed; "
    return [Claim(c.claim, c.source, UNTESTED, c.why if c.verdict == UNTESTED else few + c.why) for c in claims]


def _claims(study: Mapping[str, Any]) -> Iterator[Claim]:
    base, rpt = study["base"], study["reference"]
    after, before, direct = f"reasoning {rpt}", f"reasoning {base}", f"direct {base}"
    yield _difference(
        study, before, direct, -1, "Before training, reasoning predicts next tokens worse than direct prediction.",
        "Table 1",
    )  # fmt: skip
    yield _difference(study, after, before, 1, "RPT raises the accuracy of reasoning.", "Table 1")
    yield _difference(
        study, after, direct, 1, "After RPT, reasoning is above the direct prediction of the policy it started from.",
        "Table 1",
    )  # fmt: skip
    yield _as_well(study, after)
    yield _scaling(study)
    yield from _finetuned(study)
    yield Claim(
        "RPT improves zero-shot accuracy on general benchmarks.", "Table 3", UNTESTED,
        "the toy policy knows one family of problems and no general text: `rpt zeroshot` scores it at chance",
    )  # fmt: skip
    yield _patterns(study)
    asked = "asked by its critics"
    if f"direct {rpt}" in study["sets"][study["headline"]]["accuracy"]:
        yield _difference(study, f"direct {rpt}", direct, 1, "RPT also improves the policy's direct prediction.", asked)
    named = {
        "format_only": "RPT's gain is more than learning the form of answers (format-only reward).",
        "random_positions": "Hard positions teach more than random ones at the same budget.",
        "ntp": "RPT's reasoning is above that of a policy with next-token training on the same text, at equal compute.",
        "sft": "RPT's reasoning is above that of a policy that imitates RPT's right responses, at equal compute.",
    }
    for arm, claim in named.items():
        if arm in study["arms"]:
            yield _difference(study, after, f"reasoning {arm}", 1, claim, asked)
    if "ntp" in study["arms"]:
        yield _difference(
            study, after, "direct ntp", 1,
            "RPT's reasoning is above the direct prediction of a policy with next-token training, at equal compute.",
            asked,
        )  # fmt: skip
    if "shuffled_targets" in study["arms"]:
        yield _at_chance(study)
        yield _at_guess(study)


def verdict_of(bands: Mapping[str, Mapping[str, Any] | None], sign: int) -> str:
    """Return the verdict from intervals of differences by band; bands without sites do not count.

    Example:
        >>> up, level = {"low": 0.1, "high": 0.3}, {"low": -0.1, "high": 0.3}
        >>> verdict_of({"easy": up, "hard": level}, 1), verdict_of({"easy": up, "hard": None}, -1), verdict_of({}, 1)
        ('reproduced in part', 'not reproduced', 'not testable')
    """
    return _verdict([band["low"] > 0 if sign > 0 else band["high"] < 0 for band in bands.values() if band is not None])


def _verdict(holds: Sequence[bool]) -> str:
    """Return the verdict from whether the claim holds in each band."""
    if not holds:
        return UNTESTED
    return REPRODUCED if all(holds) else IN_PART if any(holds) else NOT


def _change(study: Mapping[str, Any], reading: str, baseline: str) -> dict[str, Any]:
    """Return the difference of two readings at the headline sites, for each band with sites."""
    found = [
        difference["bands"]
        for difference in study["sets"][study["headline"]]["differences"]
        if (difference["reading"], difference["baseline"]) == (reading, baseline)
    ]
    return {name: band for name, band in found[0].items() if band} if found else {}


def _describe(reading: str, baseline: str, bands: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{name} {points(band)}" for name, band in bands.items())
    return f"{reading} − {baseline}, points: {numbers or 'no sites'}"


def _difference(study: Mapping[str, Any], reading: str, baseline: str, sign: int, claim: str, source: str) -> Claim:
    """Return a claim about the difference of two readings at the headline sites."""
    bands = _change(study, reading, baseline)
    return Claim(claim, source, verdict_of(bands, sign), _describe(reading, baseline, bands))


def _as_well(study: Mapping[str, Any], after: str) -> Claim:
    """Return the claim that reasoning predicts as well as a larger model does directly.

    It holds in a band if the interval of the difference lies above −`BEHIND`: one that reaches further cannot tell.
    """
    claim, source = "RPT's reasoning predicts as well as a larger model does directly.", "Figure 4"
    bands = _change(study, after, f"direct {LARGER}")
    if not bands:
        return Claim(claim, source, UNTESTED, "the study names no model of another size (`larger`)")
    verdict = _verdict([band["low"] > -BEHIND for band in bands.values()])
    return Claim(claim, source, verdict, _describe(after, f"direct {LARGER}", bands))


def _scaling(study: Mapping[str, Any]) -> Claim:
    claim = "Accuracy follows P(C) = A/C^α + P* in training compute, in every band."
    parts, verdicts = [], []
    for band, found in study["scaling"].items():
        law, against = found["law"], found["objections"]
        if law is None:
            verdicts.append(UNTESTED)
        else:
            short = [line for line in against if line.split()[0].isdigit() or line.startswith("compute spans")]
            verdicts.append(UNTESTED if short else NOT if against else REPRODUCED)
        fit = f"R² {law['r2']:.3f}" if law else "no fit"
        parts.append(f"{band}: {fit}{' (' + '; '.join(against) + ')' if against else ''}")
    kinds = set(verdicts)
    verdict = kinds.pop() if len(kinds) == 1 else IN_PART if REPRODUCED in kinds else NOT if NOT in kinds else UNTESTED
    return Claim(claim, "Figure 5", verdict, ", ".join(parts) or "accuracy was not measured during training")


def _finetuned(study: Mapping[str, Any]) -> Iterator[Claim]:
    found, base = study["finetuned"], study["base"]
    differences = found.get("differences", {})
    for other, when, claim in (
        (base, "before", "Before RL on questions, RPT's policy answers more of them than the policy it started from."),
        (base, "after", "After RL on questions, RPT's policy answers more of them than the policy it started from."),
        ("ntp", "after", "After RL on questions, RPT's policy is above one with next-token training in its place."),
        ("sft", "after", "After RL on questions, RPT's policy is above one with supervised training in its place."),
    ):
        if other in study["arms"]:
            change = differences.get(other, {}).get(when)
            why = (
                f"{study['reference']} − {other}, points: {points(change)}" if change else "no arm went on to questions"
            )
            source = "asked by its critics" if other == "sft" else "Table 2"
            yield Claim(claim, source, verdict_of({"all": change}, 1), why)


def _patterns(study: Mapping[str, Any]) -> Claim:
    claim = "RPT's reasoning uses more hypothesis and deduction."
    groups = {name: study["patterns"][name] for name in PAPER_CHANGE}
    shares = ", ".join(
        f"{name} {100 * g['after']['value']:.1f} % after, {100 * g['before']['value']:.1f} % before"
        for name, g in groups.items()
    )
    if all(max(g["after"]["value"], g["before"]["value"]) < MIN_USE for g in groups.values()):
        return Claim(claim, "Figure 6", UNTESTED, f"neither policy thinks in words: {shares}")
    return Claim(claim, "Figure 6", verdict_of({name: g["difference"] for name, g in groups.items()}, 1), shares)


def _at_chance(study: Mapping[str, Any]) -> Claim:
    """Return the control that holds unless its interval lies above the accuracy of the best constant answer."""
    summary = study["sets"][study["headline"]]
    bands = summary["accuracy"]["reasoning shuffled_targets"]
    known = {name: band for name, band in bands.items() if band is not None}
    holds = [band["low"] <= summary["chance"][name] for name, band in known.items()]
    numbers = ", ".join(
        f"{name} {100 * band['value']:.1f} [{100 * band['low']:.1f}, {100 * band['high']:.1f}] against "
        f"{100 * summary['chance'][name]:.1f}"
        for name, band in known.items()
    )
    return Claim(
        "With shuffled targets, reasoning does not rise above chance (the best constant answer).",
        "control", _verdict(holds), f"accuracy, %: {numbers}",
    )  # fmt: skip


def _at_guess(study: Mapping[str, Any]) -> Claim:
    """Return the control that holds unless its interval lies above the untrained policy's direct prediction.

    Shuffled targets still show which kind of answer is expected, so a policy that can already reason may learn to give
    an answer of that kind. It must not become better than a guess without reasoning.
    """
    pair = ("reasoning shuffled_targets", f"direct {study['base']}")
    bands = _change(study, *pair)
    return Claim(
        "With shuffled targets, reasoning does not rise above a guess without a thought (direct prediction).",
        "control", _verdict([band["low"] <= 0 for band in bands.values()]), _describe(*pair, bands),
    )  # fmt: skip
