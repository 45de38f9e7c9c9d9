"""`rpt export` on real shards, read by the trainers' own code where their environments are given."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from commands.exchange.export import export
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record, content_hash, current_record
from pipeline.core.parquet import read_table
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import doc_id
from pipeline.export.formats import FORMATS
from pipeline.export.reward_callback import ground_truth
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import boundaries_of
from pipeline.task.gate import FEATURES, Gate
from pipeline.task.reward import score_response
from stages.materialize import materialize
from stages.select import select
from tests.selection.tables import documents_of, scores_of
from tests.stages.published import InProcess, cut, publish_tables
from tests.toys import byte_level_tokenizer, problems

ROOT = Path(__file__).parent.parent.parent
TEXTS = [row["problem"] + "\n" + row["solution"] for row in problems(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Record]:
    return shards_of(tmp_path_factory.mktemp("work"), TEXTS)


def shards_of(work: Path, texts: list[str], metadata: dict[str, str] | None = None) -> tuple[Manifest, Record]:
    """A manifest and its shards: documents in shards of 15, each tenth held out, each with metadata."""
    policy = byte_level_tokenizer(work / "policy", TEXTS, 400)
    toy = Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": {"model": "none"},
            "select": {"metadata": metadata or {}},
            "materialize": {"policy_tokenizer": str(policy), "max_context_tokens": 30, "row_group": 64},
        }
    )
    tokenizer = CorpusTokenizer.load(policy)
    documents = documents_of(texts, ["validation" if i % 10 == 9 else "train" for i in range(len(texts))])
    meta = [json.dumps({"difficulty": i % 5, "domain": ["A", "B"][: i % 3], "label": "x"}) for i in range(len(texts))]
    field = documents.schema.field("meta")
    documents = documents.set_column(documents.schema.get_field_index("meta"), field, pa.array(meta, field.type))
    ends = [tokenizer.ends(tokenizer.encode(text)).tolist() for text in texts]
    entropies = [[None if t < 4 else (t % 3) * 0.75 for t in range(len(e))] for e in ends]
    ingested = publish_tables(work, "ingest", [{"documents": t} for t in cut(documents, 15)])
    scored = publish_tables(work, "score", [{"scores": t} for t in cut(scores_of(documents, ends, entropies), 15)])
    sites = select(toy, ingested, scored, work=work, executor=InProcess())
    return toy, materialize(toy, ingested, scored, sites, work=work, executor=InProcess())


def exported(made: tuple[Manifest, Record], format: str, out: Path, **settings: Any) -> Path:
    toy, shards = made
    asked = {"task": TaskConfig(template="brief")} | settings
    export("toy", shards, format=format, out=out, policy=toy.materialize, **asked)
    return out


def rows_of(folder: Path, split: str) -> list[dict]:
    path = next(folder.glob(f"{split}.*"))
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


TRUTHS = {
    "verl": lambda row: (row["prompt"], row["reward_model"]["ground_truth"], row["extra_info"]),
    "trl": lambda row: (row["prompt"], row["ground_truth"], row),
    "openrlhf": lambda row: (row["input"], row["label"], row),
    "nemo-rl": lambda row: (row["input"], row["output"], row),
    "jsonl": lambda row: (row["prompt"], row["ground_truth"], row),
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_site_is_a_row_with_its_prompt_and_truth(
    made: tuple[Manifest, Record], tmp_path: Path, format: str
) -> None:
    folder = exported(made, format, tmp_path / "out")
    for split in ("train", "validation"):
        sites = [site for file in made[1].files(split) for site in read_table(file).to_pylist()]
        rows = rows_of(folder, split)
        assert len(rows) == len(sites) == made[1].counters[f"kept.{split}"] > 10
        for site, row in zip(sites, rows, strict=True):
            prompt, truth, about = TRUTHS[format](row)
            asked = "Complete the text: " + site["context"].decode()
            assert prompt in (asked, [{"role": "user", "content": asked}])
            assert truth == ground_truth(site["continuation"], site["token_lengths"])
            assert about["site_id"] == site["site_id"] and about["entropy"] == site["entropy"]
    about = json.loads((folder / "export.json").read_text())
    assert about["shards"]["content"] == made[1].content
    assert about["files"] == {name: content_hash(folder / name) for name in about["files"]}
    assert {path.name for path in folder.iterdir()} == {*about["files"], "export.json"}


@pytest.mark.parametrize("format", FORMATS)
def test_prompts_end_with_what_is_given_and_the_reward_reads_it(
    made: tuple[Manifest, Record], tmp_path: Path, format: str
) -> None:
    toy, shards = made
    task = TaskConfig(thinking="none", prefill="\n\\boxed{")
    export("toy", shards, format=format, task=task, out=tmp_path / "out", policy=toy.materialize)
    prompt, truth, _ = TRUTHS[format](rows_of(tmp_path / "out", "train")[0])
    asked = prompt if isinstance(prompt, str) else prompt[0]["content"]
    assert "Answer at once" in asked and asked.endswith("The next token is\n\\boxed{")
    spec = importlib.util.spec_from_file_location("own_reward", tmp_path / "out" / "rpt_reward.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    continuation = read_table(shards.files("train")[0]).to_pylist()[0]["continuation"]
    assert module.judge(continuation + b"}", truth).right and not module.judge(b"</think>" + continuation, truth).right
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["template"] == {"name": "direct", "version": 1}
    assert about["thinking"] == {"mode": "none", "start": "<think>", "end": "</think>", "prefill": "\n\\boxed{"}
    assert "without thinking" in (tmp_path / "out" / "README.md").read_text()


def test_a_gate_is_carried_with_code_that_needs_nothing_else(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    weights = (2.0, *(0.0,) * (len(FEATURES) - 1))
    text = Gate((0.0,) * len(FEATURES), (1.0,) * len(FEATURES), weights, -1.0).text()
    folder = exported(made, "trl", tmp_path / "out", gate=text)
    about = json.loads((folder / "export.json").read_text())
    assert {"gate.json", "rpt_gate.py"} <= set(about["files"]) and "rpt_gate.py" in (folder / "README.md").read_text()
    code = (
        "from rpt_gate import Known, gate_of\n"
        "gate = gate_of(open('gate.json', encoding='utf-8').read())\n"
        "print([gate.thinks(Known(entropy, -1.0, 1.0, 9, b' 4', '=')) for entropy in (0.25, 0.75)])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, True]"
    assert not (exported(made, "trl", tmp_path / "without") / "gate.json").exists()


def test_verls_columns_are_those_it_documents(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    row = rows_of(exported(made, "verl", tmp_path / "out"), "train")[7]
    assert row["data_source"] == "rpt/toy" and row["ability"] == "next_token"
    assert row["reward_model"]["style"] == "rule"
    assert row["extra_info"]["index"] == 7 and row["extra_info"]["split"] == "train"


def test_where_chooses_sites_and_bytes_are_the_same_every_time(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    some = rows_of(exported(made, "jsonl", tmp_path / "some", where="position > 20"), "train")
    everything = rows_of(exported(made, "jsonl", tmp_path / "all"), "train")
    assert some == [row for row in everything if row["position"] > 20] and 0 < len(some) < len(everything)
    assert content_hash(exported(made, "verl", tmp_path / "a") / "train.parquet") == content_hash(
        exported(made, "verl", tmp_path / "b") / "train.parquet"
    )


def test_prompts_have_the_same_ids_in_the_trainers_that_read_them(tmp_path: Path) -> None:
    """Contexts that hold a special token literally are text here, and the token itself where text is tokenized whole;
    they are left out and counted, and so are those with other added tokens."""
    texts = [*TEXTS[:20], "a <|end|> b and then 4 apples", "it <think>hm</think> 4 apples", "4 <|end| >  apples"]
    toy, shards = shards_of(tmp_path, texts)
    out = tmp_path / "out"
    rows = export("toy", shards, format="trl", task=TaskConfig(template="question"), out=out, policy=toy.materialize)
    dropped = json.loads((out / "export.json").read_text())["dropped"]["added_token_in_context"]
    tokenizer = CorpusTokenizer.load(toy.materialize.policy_tokenizer)
    sites = [
        site for split in ("train", "validation") for f in shards.files(split) for site in read_table(f).to_pylist()
    ]
    hostile = [s for s in sites if b"<|end|>" in s["context"] or b"<think>" in s["context"]]
    assert dropped == len(hostile) > 4 and sum(rows.values()) == len(sites) - dropped
    whole = AutoTokenizer.from_pretrained(toy.materialize.policy_tokenizer)
    exported_sites = [row for split in rows if rows[split] for row in rows_of(out, split)]
    assert any("<|end| >" in row["prompt"][0]["content"] for row in exported_sites)
    for row in exported_sites:
        context = row["prompt"][0]["content"]
        assert whole.encode(context, add_special_tokens=False) == tokenizer.encode(context).tolist()


@pytest.fixture(scope="module")
def with_metadata(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Record]:
    return shards_of(
        tmp_path_factory.mktemp("metadata"), TEXTS, {"difficulty": "number", "domain": "json", "label": "text"}
    )


@pytest.mark.parametrize("format", ["verl", "trl", "jsonl"])
def test_declared_metadata_go_on_into_sites_shards_and_exports(
    with_metadata: tuple[Manifest, Record], tmp_path: Path, format: str
) -> None:
    of_document = {text: i for i, text in enumerate(TEXTS)}
    ids = {doc_id(text): i for text, i in of_document.items()}
    everything = rows_of(exported(with_metadata, format, tmp_path / "all"), "train")
    for row in everything:
        about = TRUTHS[format](row)[2]
        number = ids[about["doc_id"]]
        assert about["difficulty"] == number % 5 and about["label"] == "x"
        assert json.loads(about["domain"]) == ["A", "B"][: number % 3]
        assert about["band"] in ("medium", "hard")
    rule = "difficulty >= 3 AND domain LIKE '%\"B\"%' AND band = 'medium'"
    some = rows_of(exported(with_metadata, format, tmp_path / "some", where=rule), "train")
    wanted = {doc_id for doc_id, number in ids.items() if number % 5 >= 3 and number % 3 == 2}
    assert {TRUTHS[format](row)[2]["doc_id"] for row in some} == wanted - held_out(ids) != set()
    reader = ShardReader(with_metadata[1].files("train"), rule)
    assert list(reader.site_ids()) == [TRUTHS[format](row)[2]["site_id"] for row in some]
    with pytest.raises(UserError, match="compares `domain`"):
        ShardReader(with_metadata[1].files("train"), "domain = 'B'")


def test_metadata_of_the_name_of_a_formats_column_are_refused(
    with_metadata: tuple[Manifest, Record], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"its own column `label`.*select\.metadata"):
        exported(with_metadata, "openrlhf", tmp_path / "none")


def held_out(ids: dict[str, int]) -> set[str]:
    return {doc_id for doc_id, number in ids.items() if number % 10 == 9}


def test_what_cannot_be_exported_is_told_and_leaves_nothing(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="output folder is not empty"):
        exported(made, "verl", tmp_path / "full")
    for format in ("verl", "openrlhf"):
        with pytest.raises(UserError, match=r"passes text.*token_price: 0\.1"):
            exported(made, format, tmp_path / "none", task=TaskConfig(template="brief", token_price=0.1))
    with pytest.raises(UserError, match="no training site"):
        exported(made, "verl", tmp_path / "none", where="position > 9999")
    with pytest.raises(UserError, match="did you mean `position`"):
        exported(made, "verl", tmp_path / "none", where="positon > 9")
    victim = made[1].files("train")[0].path
    data = victim.read_bytes()
    victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        with pytest.raises(IntegrityError, match="changed after the fact"):
            exported(made, "verl", tmp_path / "none")
    finally:
        victim.write_bytes(data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


# ------------------------------------------------------------------------------- the trainers' own code


def demo_shards(folder: Path) -> tuple[Manifest, Record]:
    """The demo's manifest, and the shards of 400 of its problems."""
    lines = gzip.decompress((ROOT / "demo" / "corpus.jsonl.gz").read_bytes()).splitlines(keepends=True)
    (folder / "some.jsonl").write_bytes(b"".join(lines[:400]))
    command = [sys.executable, "-m", "commands.cli", "data", "data_manifests/demo.yaml"]
    command += ["--source", str(folder / "some.jsonl"), "--work", str(folder / "work")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    demo = load(Manifest, ROOT / "data_manifests" / "demo.yaml")
    located = demo.materialize.model_copy(update={"policy_tokenizer": str(ROOT / "demo" / "policy")})
    return demo.model_copy(update={"materialize": located}), current_record(folder / "work" / "demo", "materialize")


def python_of(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set: give the Python of an environment that has it")
    return path


def run_in(python: str, script: str, *arguments: Path) -> list:
    """The JSON that a script prints last."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
    command = [python, str(ROOT / "tests" / "export" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_trl_trains_with_the_exported_reward(tmp_path: Path) -> None:
    """TRL's GRPOTrainer, three steps; each reward it computed is what we give the same token ids."""
    python = python_of("RPT_TRL_PYTHON")
    demo, shards = demo_shards(tmp_path)
    export(
        "demo", shards, format="trl", task=TaskConfig(template="brief"), out=tmp_path / "out", policy=demo.materialize
    )
    seen = run_in(python, "trl_three_steps.py", tmp_path / "out", ROOT / "demo" / "policy")
    tokenizer = CorpusTokenizer.load(ROOT / "demo" / "policy")
    end = tokenizer.id_of("<|end|>")
    sites = {site["site_id"]: site for file in shards.files("train") for site in read_table(file).to_pylist()}
    assert len(seen) == 3 * 16
    for answer in seen:
        site, ids = sites[answer["site_id"]], answer["ids"]
        finished = ids[-1] == end
        data = tokenizer.decode_bytes(ids[:-1] if finished else ids, continues=True)
        ours = score_response(data, finished, site["continuation"], boundaries_of(site["token_lengths"]))
        assert answer["reward"] == ours.reward
    assert 0 < sum(answer["reward"] for answer in seen) < len(seen)


@pytest.mark.slow
def test_verl_reads_the_rows_and_calls_the_reward(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    """verl's own dataset class and its own loader of reward functions."""
    python = python_of("RPT_VERL_PYTHON")
    folder = exported(made, "verl", tmp_path / "out")
    seen = run_in(python, "verl_reads.py", folder, ROOT / "demo" / "policy")
    rows = rows_of(folder, "train")
    assert len(seen) == len(rows)
    for row, there in zip(rows, seen, strict=True):
        assert there["raw_prompt"] == row["prompt"] and there["index"] == row["extra_info"]["index"]
        assert there["right"] == {"score": 1.0, "acc": 1.0, "reason": "match"}
        assert there["wrong"]["score"] == 0.0


def test_nemo_rls_rows_are_those_that_it_documents(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    """`ResponseDataset` of docs/guides/grpo.md: JSON lines by `datasets`, `input_key`, `output_key`, and no `messages`,
    which would be taken as they are. What is on PyPI is a placeholder without code."""
    load_dataset = pytest.importorskip("datasets").load_dataset

    folder = exported(made, "nemo-rl", tmp_path / "out")
    loaded = load_dataset("json", data_files=str(folder / "train.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    assert "messages" not in loaded.column_names
    assert {loaded.features[name].dtype for name in ("input", "output")} == {"string"}
    assert [(row["input"], row["output"]) for row in loaded] == [
        (row["input"], row["output"]) for row in rows_of(folder, "train")
    ]


@pytest.mark.slow
def test_openrlhf_reads_the_rows_and_calls_the_reward(made: tuple[Manifest, Record], tmp_path: Path) -> None:
    """OpenRLHF's own dataset class, and its executor with its loader of reward functions."""
    python = python_of("RPT_OPENRLHF_PYTHON")
    folder = exported(made, "openrlhf", tmp_path / "out")
    seen = run_in(python, "openrlhf_reads.py", folder, ROOT / "demo" / "policy")
    rows = rows_of(folder, "train")
    assert len(seen) == len(rows)
    for row, there in zip(rows, seen, strict=True):
        assert row["input"] in there["prompt"] and there["source"] == "rpt/toy"
        assert there["right"] == {"reward": 1.0, "scores": 1.0}
        assert there["cut"] == there["wrong"] == {"reward": 0.0, "scores": 0.0}
