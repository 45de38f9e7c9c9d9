"""The exported reward is ours: on random responses, loaded as trainers load it, by the standard library alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import shutil
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export import reward_callback
from pipeline.export.gate_files import gate_code
from pipeline.export.reward_bundle import reward_file
from pipeline.export.reward_callback import ground_truth
from pipeline.task.extraction import TAGS
from pipeline.task.reward import REASONS, priced, score_response
from pipeline.task.thinking import Thinking

PIECES = [" 4", "é", "数", "学", "🙂", "}", "^{", "}{", "\\", " ", "\n", "a", "Łu", "\\boxed"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """`rpt_reward.py` as OpenRLHF loads it: by path, never registered as a module."""
    return loaded(tmp_path_factory.mktemp("export"), TAGS)


def loaded(folder: Path, form: Thinking, price: float = 0.0) -> ModuleType:
    path = folder / "rpt_reward.py"
    path.write_text(reward_file(form, price), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("reward_func", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_case(rng: random.Random) -> tuple[bytes, bytes, list[int]]:
    """A response, and a continuation whose tokens are cut anywhere, inside characters too."""
    continuation = "".join(rng.choices(PIECES, k=rng.randint(1, 8))).encode()
    cuts = sorted(rng.sample(range(1, len(continuation)), k=min(rng.randint(0, 6), len(continuation) - 1)))
    lengths = [end - start for start, end in zip([0, *cuts], [*cuts, len(continuation)], strict=True)]
    cut = rng.choice([*cuts, len(continuation), rng.randint(0, len(continuation))])
    wrong = "".join(rng.choices(PIECES, k=rng.randint(0, 3))).encode()
    prediction = rng.choice([continuation[:cut], continuation[:cut], wrong, continuation[:cut] + wrong, continuation])
    thought = rng.choice([b"Hm.</think>", b"", "数</think>".encode(), b"</think>a</think>"])
    after = rng.choice([b"", b"", b"\n", b" is it.", b"$."])
    box = rng.choice([b"\\boxed{", b"\\boxed{", b"\\boxed{no} \\boxed{", b""])
    return thought + box + prediction + rng.choice([b"}", b"}", b""]) + after, continuation, lengths


def test_equal_on_ten_thousand_random_responses(exported: ModuleType) -> None:
    rng, seen = random.Random(0), dict.fromkeys(("match", "mismatch", "off_boundary", "empty", "missing"), 0)
    split = 0
    for _ in range(10_000):
        response, continuation, lengths = random_case(rng)
        finished, truth = rng.random() < 0.9, ground_truth(continuation, lengths)
        ours = score_response(response, finished, continuation, list(accumulate(lengths)))
        theirs = exported.judge(response, truth, finished)
        assert (theirs.reward, theirs.reason, theirs.prediction) == (ours.reward, ours.reason, ours.prediction)
        seen[ours.reason] = seen.get(ours.reason, 0) + 1
        direct = score_response(response, True, continuation, list(accumulate(lengths)))
        try:
            text = response.decode()
        except UnicodeDecodeError:  # a trainer that decodes has lost these bytes: a reward may be missed, never made up
            lossy = exported.compute_score("rpt/x", response.decode(errors="replace"), truth)
            assert lossy["score"] <= direct.reward
            split += ours.right
            continue
        scored = exported.compute_score("rpt/x", text, truth, extra_info={"index": 0}, something_new=1)
        assert scored == {"score": direct.reward, "acc": direct.reward, "reason": direct.reason}
    assert len(seen) == len(REASONS) and min(seen.values()) > 100 and split > 200, (seen, split)


def test_a_price_is_the_trainers_own(tmp_path: Path) -> None:
    """Every byte is a token here, and 256 ends a response."""
    module, rng, right = loaded(tmp_path, TAGS, 0.03), random.Random(2), 0
    tokens = [*(bytes([byte]).hex() for byte in range(256)), b"<|end|>".hex()]
    (tmp_path / "policy.json").write_text(json.dumps({"end_ids": [256], "token_bytes": tokens}))
    for _ in range(300):
        response, continuation, lengths = random_case(rng)
        truth = ground_truth(continuation, lengths)
        ours = priced(score_response(response, True, continuation, list(accumulate(lengths))), len(response) + 1, 0.03)
        assert module.judge(response, truth, True, len(response) + 1) == ours
        assert module.next_token_reward([[*response, 256]], [truth]) == [ours.reward]
        right += ours.right
        with pytest.raises(ValueError, match="number of sampled tokens"):
            module.judge(response, truth)
    assert right > 30


FORMS = [
    Thinking("tags", "数", "学", "}"),
    Thinking("tags", prefill="</think>\\boxed{"),
    Thinking("free"),
    Thinking("free", prefill="\\boxed{é"),
    Thinking("none", prefill="\\boxed{"),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.mode} {form.prefill}")
def test_equal_in_every_form_by_every_trainers_function(form: Thinking, tmp_path: Path) -> None:
    """Every byte is a token here, and 256 ends a response."""
    module, rng, seen = loaded(tmp_path, form), random.Random(1), set()
    tokens = [*(bytes([byte]).hex() for byte in range(256)), b"<|end|>".hex()]
    (tmp_path / "policy.json").write_text(json.dumps({"end_ids": [256], "token_bytes": tokens}))
    for _ in range(600):
        response, continuation, lengths = random_case(rng)
        if rng.random() < 0.3:  # as if only the box's content was left to say
            response = response.rpartition(b"\\boxed{")[2]
        response = response.replace(b"</think>", rng.choice([form.end, form.start, "</think>"]).encode())
        finished, truth = rng.random() < 0.9, ground_truth(continuation, lengths)
        ours = score_response(response, finished, continuation, list(accumulate(lengths)), form)
        assert module.judge(response, truth, finished) == ours
        assert module.next_token_reward([[*response, *([256] if finished else [])]], [truth]) == [ours.reward]
        seen.add(ours.reason)
        try:
            text = response.decode()
        except UnicodeDecodeError:
            continue
        query = f"a \\boxed{{prompt}}{form.prefill}{text}{'<|end|>' if finished else ''}"
        rewards = module.reward_func([query], [f"a \\boxed{{prompt}}{form.prefill}"], [truth])["rewards"]
        assert rewards.tolist() == [ours.reward]
        if finished:
            assert module.compute_score("x", text, truth)["score"] == ours.reward
    assert seen >= {"match", "mismatch", "off_boundary", "unfinished"}, seen


def test_against_a_plain_twin_of_equation_3(exported: ModuleType) -> None:
    """Hand-worked: 数 is e6 95 b0, cut into tokens of 2 and 1 bytes."""
    truth = ground_truth("数 4".encode(), [2, 1, 2])
    cases = {"数": 1.0, "数 4": 1.0, "数 ": 0.0, "学": 0.0, "数 45": 0.0, "": 0.0}
    for prediction, reward in cases.items():
        assert exported.judge(f"</think>\\boxed{{{prediction}}}", truth).reward == reward, prediction
    for data, reward in {b"\xe6\x95": 1.0, b"\xe6": 0.0, b"\xe6\x96": 0.0}.items():
        assert exported.judge(b"</think>\\boxed{" + data + b"}", truth).reward == reward, data


POLICY: dict[str, Any] = {
    "end_ids": [3],
    "token_bytes": [data.hex() for data in (b"</think>", b"\\boxed{", b"\xe6\x95", b"<|end|>", b"}", b"\xb0")],
}


def test_trl_is_judged_on_token_ids(exported: ModuleType) -> None:
    Path(exported.__file__ or "").with_name("policy.json").write_text(json.dumps(POLICY))
    truth = ground_truth("数 4".encode(), [2, 1, 2])
    completions = {
        (0, 1, 2, 4, 3): 1.0,
        (0, 1, 2, 5, 4, 3): 1.0,
        (0, 1, 2, 4): 0.0,
        (0, 1, 2, 4, 4): 0.0,
        (0, 1, 5, 4, 3): 0.0,
        (): 0.0,
    }
    rewards = exported.next_token_reward(
        prompts=None,
        completions=["text is not read"] * len(completions),
        completion_ids=[list(ids) for ids in completions],
        ground_truth=[truth] * len(completions),
        trainer_state=None,
    )
    assert rewards == list(completions.values())


@given(st.lists(st.integers(0, 12), max_size=12))
def test_ids_that_the_tokenizer_does_not_have_are_judged_as_rpt_train_judges_them(ids: list[int]) -> None:
    """Models have spare embedding rows, and a policy that is hot enough says them. 6 and above are spare here; an end
    of sequence may be one, too."""
    known = [bytes.fromhex(data) for data in POLICY["token_bytes"]]
    policy = reward_callback.Policy(frozenset({3, 9}), ("<|end|>",), tuple(known))
    truth = ground_truth("数".encode(), [2, 1])
    finished = bool(ids) and ids[-1] in (3, 9)
    spoken = ids[:-1] if finished else ids
    ours = b"".join(known[i] if i < 6 else "\ufffd".encode() for i in spoken)
    assert policy.response(ids) == (ours, finished)
    assert reward_callback.judge(ours, truth, finished) == score_response(ours, finished, "数".encode(), [2, 3])


def test_trl_goes_on_when_a_policy_says_spare_ids(exported: ModuleType, tmp_path: Path) -> None:
    folder = Path(exported.__file__ or "").parent
    (folder / "policy.json").write_text(json.dumps(POLICY | {"end_ids": [3, 900]}))
    exported.read_policy.cache_clear()
    try:
        completions = [[0, 1, 2, 4, 900], [0, 1, 2, 802, 4, 3], [802], [0, 1, 2, 4, 802]]
        assert exported.next_token_reward(completions, [ground_truth("数".encode(), [2, 1])] * 4) == [
            1.0,
            0.0,
            0.0,
            0.0,
        ]
        answer = "</think>\\boxed{數}<|end|>"  # an end without bytes ends no text
        assert exported.reward_func([answer[:-7]], [""], [ground_truth("數".encode(), [3])])["rewards"][0] == 0.0
        assert exported.reward_func([answer], [""], [ground_truth("數".encode(), [3])])["rewards"][0] == 1.0
    finally:
        exported.read_policy.cache_clear()
    with pytest.raises(ValueError, match="different lengths"):
        exported.next_token_reward([[1]], [])


def test_openrlhf_takes_the_prompt_and_the_end_off(exported: ModuleType) -> None:
    Path(exported.__file__ or "").with_name("policy.json").write_text(json.dumps(POLICY))
    truth, prompt = ground_truth(b"}", [1]), "a prompt with </think>\\boxed{x}"
    answers = {"</think>\\boxed{}}<|end|>": 1.0, "</think>\\boxed{}}": 0.0, "\\boxed{}}<|end|>": 0.0}
    result = exported.reward_func([prompt + a for a in answers], [prompt] * 3, [truth] * 3)
    assert result["rewards"].tolist() == list(answers.values()) == result["scores"].tolist()
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        exported.reward_func(["cut" + prompt], [prompt], [truth])


OLD = """
import sys, json; sys.modules["torch"] = None
import importlib.util
spec = importlib.util.spec_from_file_location("reward_func", "rpt_reward.py")
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
truth = module.ground_truth(b" 4", [2])
token_bytes = [data.hex() for data in (b"</think>", b"\\\\boxed{", b" 4", b"~", b"}")]
open("policy.json", "w").write(json.dumps({"end_ids": [3], "token_bytes": token_bytes}))
print(json.dumps([
    module.compute_score("x", r"</think>\\boxed{ 4}", truth)["score"],
    module.next_token_reward([[0, 1, 2, 4, 3], [802]], [truth, truth]),
    module.reward_func([r"p</think>\\boxed{ 4}~", "p"], ["p", "p"], [truth, truth])["rewards"],
    module.judge(b"", truth).reason,
]))
"""


@pytest.mark.parametrize("version", ["3.8", "3.9", "3"])
def test_it_works_in_older_pythons_and_without_torch(exported: ModuleType, tmp_path: Path, version: str) -> None:
    python = sys.executable if version == "3" else shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no Python {version}")
    (tmp_path / "rpt_reward.py").write_text(reward_file(TAGS), encoding="utf-8")
    done = subprocess.run([python, "-c", OLD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, [1.0, 0.0], [1.0, 0.0], "missing"]


def test_it_has_nothing_that_python_3_8_lacks(tmp_path: Path) -> None:
    """Where no old Python is at hand: its grammar, and no name of the standard library that came later."""
    ast.parse(reward_file(TAGS), feature_version=(3, 8))
    ast.parse(gate_code(), feature_version=(3, 8))
    (tmp_path / "rpt_reward.py").write_text(reward_file(TAGS), encoding="utf-8")
    (tmp_path / "rpt_gate.py").write_text(gate_code(), encoding="utf-8")
    vermin = [sys.executable, "-c", "from vermin import main; main()", "--target=3.8-", "--no-tips", "--violations"]
    found = subprocess.run([*vermin, tmp_path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_it_imports_nothing_but_the_standard_library(exported: ModuleType, tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import rpt_reward; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(exported.__file__ or "").parent,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()} - {"rpt_reward"}
    assert loaded <= set(sys.stdlib_module_names), loaded - set(sys.stdlib_module_names)
