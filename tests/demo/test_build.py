import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import demo

FOLDER = Path(demo.__file__).parent
FILES = ("corpus.jsonl.gz", "proxy/model.safetensors", "policy/model.safetensors", "policy/tokenizer.json")


def quick_build(folder: Path) -> Path:
    command = [sys.executable, "-m", "demo.build", "--quick", "--threads", "1", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=FOLDER.parent)
    return folder


def test_a_build_is_reproducible_and_loads(tmp_path: Path) -> None:
    one, two = quick_build(tmp_path / "one"), quick_build(tmp_path / "two")
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    AutoModelForCausalLM.from_pretrained(one / "policy")


@pytest.mark.parametrize("name", ["proxy", "policy"])
def test_shipped_models_load_and_know_the_corpus(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("<|bos|>Problem: A dial shows 4. Ana turns it by A7, B8, C3, D6.\nSolution: it stops at 8")
    ids_1T = torch.tensor([ids["input_ids"]])
    with torch.no_grad():
        loss = model(ids_1T, labels=ids_1T).loss
    assert loss < 2.0  # a uniform guess gives ln 802 = 6.7


def test_the_embedded_assets_are_small() -> None:
    assert sum(path.stat().st_size for name in ("proxy", "policy") for path in (FOLDER / name).iterdir()) < 12e6
    assert (FOLDER / "corpus.jsonl.gz").stat().st_size < 1.5e6
