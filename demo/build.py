"""Rebuild everything in `demo/` from nothing: corpus, tokenizer, proxy, policy.

    python -m demo.build                      # about 15 minutes on two cores
    python -m demo.build --quick --out /tmp/d # a few seconds: same files, useless models (for tests)

The result depends on the arguments and on the number of threads, which changes the order of floating-point sums.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from demo import corpus
from demo.lessons import INSTRUCTION, Lesson, Teacher
from demo.tokenizer import train_tokenizer
from demo.train import build_model, save, train

VOCABULARY = 800
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of the corpus and the length of training; the shipped files were built with the defaults."""

    proxy_steps: int = 800
    policy_steps: int = 2500
    token_budget: int = 2048
    train_documents: int = corpus.TRAIN_DOCUMENTS
    validation_documents: int = corpus.VALIDATION_DOCUMENTS


QUICK = Scale(proxy_steps=2, policy_steps=2, token_budget=256, train_documents=40, validation_documents=20)

COURSE = (
    (0.06, {"lookup": 1.0}),
    (0.22, {"chain_of_thought": 0.1, "drill": 0.75, "lookup": 0.15}),
    (1.00, {"document": 0.20, "chain_of_thought": 0.46, "hint": 0.24, "drill": 0.06, "lookup": 0.04}),
)
"""Shares of the lessons until a share of the steps has passed: first find a move by its label, then learn the steps of
the walks by heart, then everything together. Everything together from the start took five times as long."""


def tokenizer_sample(seed: int) -> Iterator[str]:
    """Yield the texts to which the tokenizer is fitted: training documents, and all states as single tokens."""
    for document in corpus.documents(seed, 4000, validation=False):
        yield document.text
    for _ in range(400):
        yield from ("".join(wheel) for wheel in corpus.WHEELS.values())
        yield from (INSTRUCTION, "\\boxed{")


def build_proxy(tokenizer: PreTrainedTokenizerFast, folder: Path, scale: Scale, seed: int) -> None:
    """Train the proxy on plain documents; selection calls positions hard that are hard for it."""
    teacher = Teacher(tokenizer, random.Random(f"proxy/{seed}"))
    model = build_model(tokenizer, width=64, layers=2, seed=seed)
    train(model, lambda _: teacher.document(), steps=scale.proxy_steps, token_budget=scale.token_budget, seed=seed)
    save(model, tokenizer, folder)


def build_policy(tokenizer: PreTrainedTokenizerFast, folder: Path, scale: Scale, seed: int) -> None:
    """Train the policy on the lessons of `COURSE`."""
    teacher = Teacher(tokenizer, random.Random(f"policy/{seed}"))

    def draw(progress: float) -> Lesson:
        shares = next(shares for until, shares in COURSE if progress <= until)
        kind = teacher.rng.choices(list(shares), list(shares.values()))[0]
        return getattr(teacher, kind)()

    model = build_model(tokenizer, width=128, layers=3, seed=seed)
    train(
        model,
        draw,
        steps=scale.policy_steps,
        token_budget=scale.token_budget,
        muon_lr=0.015,
        adam_lr=2e-3,
        seed=seed,
    )
    save(model, tokenizer, folder)


def main() -> None:
    """Rebuild the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into (default: demo/)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few seconds, useless models")
    parser.add_argument(
        "--only", nargs="+", choices=("corpus", "proxy", "policy"), default=("corpus", "proxy", "policy")
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scale, started = QUICK if args.quick else Scale(), time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(tokenizer_sample(args.seed), VOCABULARY)
    print(f"tokenizer: {len(tokenizer)} tokens", flush=True)
    if "corpus" in args.only:
        corpus.write_corpus(
            args.out / "corpus.jsonl.gz",
            seed=corpus.SEED,
            validation_seed=corpus.VALIDATION_SEED,
            train=scale.train_documents,
            validation=scale.validation_documents,
        )
        print(f"corpus: {scale.train_documents} + {scale.validation_documents} documents", flush=True)
    for name, build in (("proxy", build_proxy), ("policy", build_policy)):
        if name in args.only:
            print(f"{name}:", flush=True)
            build(tokenizer, args.out / name, scale, args.seed)
    print(f"done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    # Set before torch's allocator starts; page faults of large temporaries otherwise cost several times the arithmetic.
    if os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "100000000000") and "MALLOC_MMAP_MAX_" not in os.environ:
        os.environ["MALLOC_MMAP_MAX_"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "demo.build", *sys.argv[1:]])
    main()
