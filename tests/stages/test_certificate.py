"""The certificate as the command writes it: into the selection's folder, whatever the shards, and with its refusal."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.errors import IntegrityError, RefusedError, UserError
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Record
from pipeline.core.marks import CERTIFICATE, read_certificate
from stages.certificate import certify
from stages.score import score
from stages.select import select
from tests.selection.tables import documents_of, scores_of
from tests.stages.published import InProcess, cut, publish_tables
from tests.stages.test_score import ingested
from tests.stages.test_score import manifest as score_manifest
from tests.stages.test_select import manifest, sites_of
from tests.toys import problems


def tables(nats: float) -> tuple[pa.Table, pa.Table]:
    """Sixty documents of three-byte tokens whose ids repeat, with entropies around `nats` and losses of twice that."""
    rng = random.Random(0)
    documents = documents_of([row["problem"] + row["solution"] for row in problems(60)])
    sizes = [len(text.encode()) for text in documents["text"].to_pylist()]
    ends = [[*range(3, size, 3), size] for size in sizes]
    entropies = [[None if t < 4 else nats * rng.choice([0.5, 1, 1.5]) for t in range(len(e))] for e in ends]
    return documents, scores_of(documents, ends, entropies)


def selected(work: Path, nats: float, per_shard: int = 20, **settings: Any) -> tuple[Any, list[Record]]:
    """The manifest, and the records of its documents, scores and sites."""
    documents, scores = (cut(table, per_shard) for table in tables(nats))
    ingested = publish_tables(work, "ingest", [{"documents": table} for table in documents])
    scored = publish_tables(work, "score", [{"scores": table} for table in scores])
    read = manifest(**{"where": "entropy > 0"} | settings)
    return read, [ingested, scored, select(read, ingested, scored, work=work, executor=InProcess())]


def certified(work: Path, nats: float, per_shard: int = 20, accept: bool = False, **settings: Any) -> dict[str, Any]:
    read, records = selected(work, nats, per_shard, **settings)
    try:
        found = certify(read, *records, work=work, executor=InProcess(), accept=accept)
    finally:
        written = read_certificate(records[2])
    assert written == found
    return found


JUDGED = {"certificate": {"least_tokens": 1000}}


def test_the_same_whatever_the_number_of_shards(tmp_path: Path) -> None:
    found = [certified(tmp_path / str(size), 0.3, size, **JUDGED) for size in (60, 20, 7)]
    assert found[0] == found[1] == found[2]
    assert found[0]["bits_per_byte"]["documents"] == 60


def test_a_proxy_worse_than_token_frequencies_is_refused_until_accepted(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="token frequencies alone") as refused:
        certified(tmp_path, 9.0, **JUDGED)
    assert refused.value.exit_code == 4
    assert certified(tmp_path, 9.0, accept=True, **JUDGED)["accepted"]
    assert certified(tmp_path, 9.0, **JUDGED)["accepted"]  # it is recorded, and holds from then on
    with pytest.raises(RefusedError):  # for this selection only
        certified(tmp_path, 9.0, **JUDGED, max_per_document=3)
    with pytest.raises(RefusedError):  # and by these bounds only
        certified(tmp_path, 9.0, certificate={"least_tokens": 1001})


def test_a_small_corpus_is_not_judged(tmp_path: Path) -> None:
    found = certified(tmp_path, 9.0)
    assert (found["verdict"], found["accepted"]) == ("too small to judge", False)


def test_a_damaged_certificate_is_noticed(tmp_path: Path) -> None:
    certified(tmp_path, 0.3)
    (path,) = tmp_path.glob(f"select/*/{CERTIFICATE}")
    path.write_text(path.read_text(encoding="utf-8").replace("too small to judge", "pass"), encoding="utf-8")
    with pytest.raises(IntegrityError, match="was changed"):
        certified(tmp_path, 0.3)


def test_agreement_with_a_second_selection(tmp_path: Path) -> None:
    """Against sets of places in Python, between shards that are cut differently."""
    _, (_, _, one) = selected(tmp_path / "one", 0.3)
    _, (_, _, other) = selected(tmp_path / "one", 0.3, where="entropy > 0.2")
    second = {"least_tokens": 1000, "second": str(other.directory)}
    found = certified(tmp_path / "one", 0.3, certificate=second)["agreement"]
    first_set, second_set = ({(s["doc_id"], s["byte_offset"]) for s in sites_of(each)} for each in (one, other))
    assert (found["first"], found["second"]) == (len(first_set), len(second_set))
    assert found["both"] == len(first_set & second_set)
    assert found["jaccard"] == round(len(first_set & second_set) / len(first_set | second_set), 4)
    assert found["kappa"] == 0  # the first selection keeps all: whatever the second keeps agrees by chance only
    with pytest.raises(UserError, match="not a selection"):
        certified(
            tmp_path / "one", 0.3, certificate=second | {"second": str(next(tmp_path.glob("one/score/*/done")).parent)}
        )
    with pytest.raises(UserError, match="of other documents"):
        certified(tmp_path / "two", 0.3, 60, certificate=second)


BY_HEART = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 64, "batch_tokens": 128,
            "epochs": 30}  # fmt: skip


@pytest.mark.parametrize("kind", ["letters at random", "problems"])
def test_a_proxy_that_learned_its_corpus_by_heart_is_refused(tmp_path: Path, kind: str) -> None:
    """Sixteen documents, too few to hold some out: the fit does not end early, and letters at random are memorised."""
    rng = random.Random(0)
    drawn = ["".join(rng.choices("abcdefghijklmnop", k=100)) for _ in range(16)]
    texts = drawn if kind != "problems" else [row["problem"] + row["solution"] for row in problems(16)]
    select_config = SelectConfig.model_validate({"where": "entropy > 0", "certificate": {"least_tokens": 500}})
    read = score_manifest({"train": BY_HEART}).model_copy(update={"select": select_config})
    documents, executor = ingested(tmp_path, texts), InProcess()
    scored = score(read, documents, work=tmp_path, executor=executor)
    sites = select(read, documents, scored, work=tmp_path, executor=executor)
    try:
        certify(read, documents, scored, sites, work=tmp_path, executor=executor)
        code = 0
    except RefusedError as error:
        code = error.exit_code
    found = read_certificate(sites)
    assert found
    if kind == "problems":
        assert found["bits_per_byte"]["proxy"] < found["bits_per_byte"]["unigram"]
    else:
        assert code == 4 and found["findings"][0]["rule"] == "unigram"
        assert found["bits_per_byte"]["proxy"] > 1.05 * found["bits_per_byte"]["unigram"]
