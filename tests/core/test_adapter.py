"""LoRA adapters: merged as `peft` merges them, known by adapter and base, and what cannot be merged is told."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.proxy import load_proxy
from tests.scoring.models import qwen, save

peft = pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where merged models go."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub" / "rpt" / "merged"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", qwen(304))


def adapter_of(base: Path, folder: Path, seed: int = 1) -> Path:
    """A LoRA of rank 2 whose B is not zero, saved as `peft` saves it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(folder)
    return folder


IDS_BT = torch.arange(24).reshape(2, 12)


def test_the_merged_folder_has_pefts_logits(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    adapter = adapter_of(base, tmp_path / "adapter")
    folder = resolve_model(str(adapter))
    ours_BTV = AutoModelForCausalLM.from_pretrained(folder)(IDS_BT).logits
    theirs_BTV = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)(IDS_BT).logits
    untouched_BTV = AutoModelForCausalLM.from_pretrained(base)(IDS_BT).logits
    torch.testing.assert_close(ours_BTV, theirs_BTV, rtol=1e-4, atol=1e-5)
    assert (ours_BTV - untouched_BTV).abs().max() > 0.1
    assert not (folder / "adapter_config.json").exists()
    assert load_proxy(folder, CorpusTokenizer.load(folder), "float32").vocab_size == 304


def test_it_is_merged_once_and_known_by_adapter_and_base(base: Path, tmp_path: Path, cache: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    first = resolve_model(str(adapter))
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert resolve_model(str(adapter)) == first and first.parent == cache
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before

    moved = shutil.copytree(base, tmp_path / "moved")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(moved)}))
    assert resolve_model(str(adapter)) == first  # the same contents elsewhere

    scaled = shutil.copytree(adapter, tmp_path / "scaled")
    (scaled / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 4}))
    other = adapter_of(base, tmp_path / "other", seed=2)
    of_another_base = adapter_of(save(tmp_path / "base 2", qwen(304, seed=5)), tmp_path / "third")
    shutil.copyfile(adapter / "adapter_model.safetensors", of_another_base / "adapter_model.safetensors")
    folders = [first, *(resolve_model(str(a)) for a in (scaled, other, of_another_base)), base]
    assert len({model_digest(folder) for folder in folders}) == 5


def test_the_tokenizer_is_the_adapters_own_if_it_has_one_else_the_bases(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    bases = CorpusTokenizer.load(base).digest
    assert CorpusTokenizer.load(adapter).digest == CorpusTokenizer.load(resolve_model(str(adapter))).digest == bases
    own = save(tmp_path / "own", qwen(304), vocab_size=290) / "tokenizer.json"
    shutil.copyfile(own, adapter / "tokenizer.json")
    assert CorpusTokenizer.load(adapter).digest == CorpusTokenizer.load(resolve_model(str(adapter))).digest != bases
    assert resolve_model(str(adapter), files=("config.json",)) == base


def test_what_cannot_be_merged_is_told_and_leaves_nothing(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(UserError, match=r"pip install 'rpt\[lora\]'"):
            resolve_model(str(adapter))
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def changed(name: str, **changes: object) -> str:
        folder = shutil.copytree(adapter, tmp_path / name)
        (folder / "adapter_config.json").write_text(json.dumps(settings | changes))
        return str(folder)

    for name, changes, why in (
        ("fewer", {"target_modules": ["q_proj"]}, "their layers differ"),
        ("more", {"target_modules": ["q_proj", "down_proj", "up_proj"]}, "their layers differ"),
        ("rank", {"r": 3}, "size mismatch"),
        ("nameless", {"base_model_name_or_path": None}, "names no base"),
        ("gone", {"base_model_name_or_path": "./nowhere"}, "no such folder"),
    ):
        with pytest.raises(UserError, match=why):
            resolve_model(changed(name, **changes))
    pickled = Path(changed("pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UserError, match="weights are pickled"):
        resolve_model(str(pickled))
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]
