"""Compare selection and materialization with a naive `datasets.map` over the same documents.

    python -m benchmarks.selection --documents omni_math.jsonl --tokenizer FOLDER   (without: a synthetic corpus)

Both sides get the same tokenised and scored documents and make the same training examples of every position that has
scores (`where: true`, the dense case) and of those above 1.0 nat, on one core. The scores are drawn, not computed: what
is measured is everything after them, in seconds of processor time (one core, independent of other load). The naive side
is the obvious first version: a `map` that emits one Arrow row per position, with context, target and continuation.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.config.manifest import MaterializeConfig
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import InputFile, Shard
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import DOCUMENTS, doc_id
from pipeline.scoring.entropy import PositionScores
from pipeline.scoring.table import SCORES, ScoredDocument, scores_table
from stages import materialize, select

BARS = {"sites_per_second_all": 100_000, "bytes_per_site_all": 20.0}
MIN_CONTEXT, CONTINUATION, MAX_CONTEXT = 8, 16, 4096


def corpus(path: Path | None, most: int) -> list[str]:
    """Texts of a jsonl with `problem` and `solution`, or of short synthetic problems."""
    if path is not None:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()[:most]]
        return list(dict.fromkeys(f"{row['problem']}\n\n{row['solution']}" for row in rows))
    rng, words = random.Random(0), [f"word{n}" for n in range(3000)]
    return [" ".join(rng.choices(words, k=rng.randrange(50, 600))) for _ in range(most)]


def tables(texts: list[str], tokenizer: CorpusTokenizer) -> tuple[pa.Table, pa.Table]:
    """Documents and their scores: entropies as a proxy's are, most of them small."""
    rng = np.random.default_rng(0)
    rows, scored = [], []
    for row, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(texts), strict=True)):
        if not tokenizer.is_lossless(text, ids):
            continue
        half = len(text.encode()) // 2
        fields = [{"name": "problem", "start": 0, "end": half}, {"name": "solution", "start": half, "end": 2 * half}]
        rows.append({"doc_id": doc_id(text), "text": text, "split": "train", "fields": fields, "source_file": "corpus"})
        rows[-1] |= {"source_row": row, "meta": "{}"}
        draws = [torch.from_numpy(rng.gamma(0.6, 1.0, max(0, len(ids) - 1)).astype(np.float32)) for _ in range(3)]
        none = torch.empty(max(0, len(ids) - 1), 0)
        scores = PositionScores(*draws, draws[2].int(), none.int(), none)
        scored.append(ScoredDocument(rows[-1]["doc_id"], "train", ids, tokenizer.ends(ids), fields, scores))
    return pa.Table.from_pylist(rows, schema=DOCUMENTS), scores_table(
        scored, min_context_tokens=MIN_CONTEXT, with_top=False
    )


def ours(where: str, files: dict[str, InputFile], tokenizer: str, out: Path) -> tuple[int, int, float]:
    """Both stages on one shard: sites, bytes of the shards, seconds."""
    for folder in ("sites", "shards"):
        (out / folder).mkdir(parents=True)
    begin = time.process_time()
    select.run(SelectConfig(where=where), Shard(0, files, {"several": False}), out / "sites")
    chosen = {"documents": files["documents"], "sites": InputFile(out / "sites" / "sites.parquet")}
    config = MaterializeConfig(
        policy_tokenizer=tokenizer, max_context_tokens=MAX_CONTEXT, continuation_tokens=CONTINUATION
    )
    counters = materialize.run(config, Shard(0, chosen, {"metadata": {}}), out / "shards")
    seconds = time.process_time() - begin
    return counters["kept.train"], (out / "shards" / "train.parquet").stat().st_size, seconds


def naive(threshold: float, files: dict[str, InputFile], tokenizer: str, out: Path) -> tuple[int, int, float]:
    """Run a `datasets.map` that emits one row per position."""
    import datasets

    datasets.disable_progress_bars()
    tokens = CorpusTokenizer.load(tokenizer)
    begin = time.process_time()
    rows = datasets.Dataset(pq.read_table(files["scores"].path, columns=["doc_id", "token_ids", "entropy", "nll"]))

    def sites(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in ("doc_id", "position", "entropy", "nll")}
        made |= {name: [] for name in ("context", "target", "continuation", "boundaries")}
        for document, ids, entropy, nll in zip(*batch.values(), strict=True):
            pieces = [tokens.token_bytes[i] for i in ids]
            for t, value in enumerate(entropy):
                if value is not None and value > threshold:
                    following = pieces[t : t + CONTINUATION]
                    made["doc_id"].append(document)
                    made["position"].append(t)
                    made["entropy"].append(value)
                    made["nll"].append(nll[t])
                    made["context"].append(b"".join(pieces[max(0, t - MAX_CONTEXT) : t]))
                    made["target"].append(pieces[t])
                    made["continuation"].append(b"".join(following))
                    made["boundaries"].append(np.cumsum([len(p) for p in following]).tolist())
        return made

    mapped = rows.map(sites, batched=True, batch_size=8, remove_columns=rows.column_names, keep_in_memory=False)
    mapped.to_parquet(out / "naive.parquet")
    return mapped.num_rows, (out / "naive.parquet").stat().st_size, time.process_time() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--tokenizer", default=str(Path(__file__).parent.parent / "demo" / "policy"))
    parser.add_argument("--most", type=int, default=3000, help="documents")
    parser.add_argument("--naive-documents", type=int, default=150, help="documents the naive side gets (it is slow)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    tokenizer = CorpusTokenizer.load(arguments.tokenizer)
    found: dict[str, Any] = {"where": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder, texts = Path(scratch), corpus(arguments.documents, arguments.most)
        files = {}
        for size, chosen in (("all", texts), ("few", texts[: arguments.naive_documents])):
            documents, scores = tables(chosen, tokenizer)
            (folder / size).mkdir()
            pq.write_table(documents, folder / size / "documents.parquet")
            pq.write_table(scores.cast(SCORES), folder / size / "scores.parquet")
            files[size] = {n: InputFile(folder / size / f"{n}.parquet") for n in ("documents", "scores")}
        found["documents"], found["tokens"] = len(texts), sum(map(len, tokenizer.encode_batch(texts)))
        ours("entropy > 9", files["few"], arguments.tokenizer, folder / "warm")
        for name, where, threshold in (("all", "true", -1.0), ("above 1.0", "entropy > 1.0", 1.0)):
            runs: dict[str, list[tuple[int, int, float]]] = {"ours": [], "ours_few": [], "naive": []}
            for repeat in range(arguments.repeats):
                out = folder / f"{name}-{repeat}"
                runs["ours"].append(ours(where, files["all"], arguments.tokenizer, out / "a"))
                runs["ours_few"].append(ours(where, files["few"], arguments.tokenizer, out / "b"))
                runs["naive"].append(naive(threshold, files["few"], arguments.tokenizer, out))
            rate = {
                side: statistics.median(sites / seconds for sites, _, seconds in made) for side, made in runs.items()
            }
            size = {side: made[0][1] / made[0][0] for side, made in runs.items()}
            found["where"][name] = {
                "sites": runs["ours"][0][0],
                "sites_per_second": round(rate["ours"]),
                "bytes_per_site": round(size["ours"], 2),
                "naive_sites_per_second": round(rate["naive"]),
                "naive_bytes_per_site": round(size["naive"], 2),
                "times_as_fast_on_the_same_documents": round(rate["ours_few"] / rate["naive"], 1),
            }
            print(f"{name}: {found['where'][name]}", file=sys.stderr)
    dense = found["where"]["all"]
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found["bars"] = BARS
    found["holds"] = (
        dense["sites_per_second"] >= BARS["sites_per_second_all"]
        and dense["bytes_per_site"] <= BARS["bytes_per_site_all"]
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
