"""Doctor: show what this machine has, and what is missing for which feature.

Input:   this environment and machine; the folder of artifacts.
Output:  tables, or JSON. The exit code is 2 if `rpt data` or `rpt train` could not run.
Command: rpt doctor [--policy POLICY] [--json]
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.core.hardware import cores, gpus

SHOWN = ("rpt", "torch", "deepspeed", "transformers", "tokenizers", "accelerate", "polars", "pyarrow", "pydantic")


@dataclass(frozen=True)
class Feature:
    """A feature of rpt and its requirements."""

    name: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    extra: str | None = None
    """The extra of rpt that installs the packages."""
    needed: bool = False
    """True if data or training does not work without it."""
    hint: str | None = None
    """The way to install it, unless `pip install` of the packages does."""
    environment: str | None = None
    """An environment variable that it uses if set."""


FEATURES = (
    Feature("data", ("polars", "pyarrow", "tokenizers", "transformers", "torch", "datasketch"), needed=True),
    Feature("train, evaluate", ("torch", "deepspeed", "transformers", "accelerate"), needed=True),
    Feature("DeepSpeed's compiled ops", ("ninja",), ("c++",), hint="pip install ninja, and a C++ compiler"),
    Feature("DeepSpeed's ops for GPUs", (), ("nvcc", "nvidia-smi"), hint="NVIDIA's driver and CUDA toolkit"),
    Feature("vLLM as sampler", ("vllm",), extra="vllm"),
    Feature("Ray clusters", ("ray",), extra="ray"),
    Feature("benchmarks of others", ("lm-eval",), extra="eval"),
    Feature("sources by s3://", ("s3fs",)),
    Feature("push and pull", ("huggingface-hub",), environment="HF_TOKEN"),
    Feature("Weights & Biases", ("wandb",), extra="wandb"),
    Feature("trackio", ("trackio",), extra="trackio"),
    Feature("MLflow", ("mlflow-skinny",), extra="mlflow"),
    Feature("LoRA adapters", ("peft",), extra="lora"),
    Feature("this documentation as a site", ("mkdocs-material",), extra="docs"),
)


def doctor(work: Path, policy: str | None = None) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        work: folder of artifacts.
        policy: folder or Hub id of a policy; if given, the report has the tokens that end its responses, and how it
            thinks under `task.thinking: auto`.
    """
    features = [_checked(feature) for feature in FEATURES]
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "versions": {name: version(name) for name in SHOWN},
        "cores": cores(),
        "memory_bytes": _memory(),
        "devices": [gpu.name for gpu in gpus()] or ["CPU"],
        "disk": _disk(work),
        "features": features,
        **({} if policy is None else {"response_ends": ends_of(policy), "thinking": thinking_in(policy)}),
        "ok": all(feature["missing"] == [] for feature in features if feature["needed"]),
    }


def ends_of(policy: str) -> list[dict[str, Any]]:
    """Return the tokens that end a response of a policy, and the files that name each.

    Raises:
        UserError: no token ends its responses, or the policy does not exist.
    """
    from pipeline.core.model_files import TOKENIZER_FILES, resolve_model
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.rollout.response_ends import response_ends

    folder = resolve_model(policy, files=(*TOKENIZER_FILES, "generation_config.json", "config.json"))
    tokens = CorpusTokenizer.load(folder)
    ends = response_ends(folder, tokens)
    return [
        {
            "id": id,
            "token": tokens.token_bytes[id].decode("utf-8", errors="replace"),
            "named_by": list(sources),
            "taught": id == ends.of_response,
        }
        for id, sources in sorted(ends.named.items())
    ]


def thinking_in(policy: str) -> dict[str, str]:
    """Return the `mode` that `task.thinking: auto` means for a policy, and the `reason`."""
    from pipeline.config.task import TaskConfig
    from pipeline.core.model_files import TOKENIZER_FILES, resolve_model
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.rollout.chat_template import ChatTemplate
    from pipeline.grpo.rollout.thinking_choice import mode_of

    folder = resolve_model(policy, files=TOKENIZER_FILES)
    mode, reason = mode_of(TaskConfig(), ChatTemplate.of(folder), CorpusTokenizer.load(folder))
    return {"mode": mode, "reason": reason}


def _checked(feature: Feature) -> dict[str, Any]:
    missing = [name for name in feature.packages if version(name) is None]
    missing += [name for name in feature.programs if shutil.which(name) is None]
    packages = f"'rpt[{feature.extra}]'" if feature.extra else " ".join(missing)
    hint = feature.hint or f"pip install {packages}"
    unset = feature.environment if feature.environment and feature.environment not in os.environ else None
    return {
        "feature": feature.name,
        "needed": feature.needed,
        "missing": missing,
        "hint": hint if missing else f"{unset} is not set: private repositories are not accessible" if unset else "",
    }


def version(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    """Return the available memory in bytes, or None if the system does not report it."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else None


def _disk(work: Path) -> dict[str, Any]:
    there = next(path for path in [work.absolute(), *work.absolute().parents] if path.exists())
    usage = shutil.disk_usage(there)
    return {"path": str(there), "free_bytes": usage.free, "total_bytes": usage.total}


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the report as tables."""
    machine = Table("", "", show_header=False)
    machine.add_row("python", f"{found['python']}  {found['executable']}")
    machine.add_row("system", found["system"])
    machine.add_row("cores", str(found["cores"]))
    if found["memory_bytes"]:
        machine.add_row("memory", f"{found['memory_bytes'] / 1e9:.1f} GB free")
    machine.add_row("devices", "\n".join(found["devices"]))
    disk = found["disk"]
    machine.add_row(
        "disk", f"{disk['free_bytes'] / 1e9:.1f} of {disk['total_bytes'] / 1e9:.1f} GB free at {disk['path']}"
    )
    machine.add_row("versions", "\n".join(f"{name} {what or 'missing'}" for name, what in found["versions"].items()))
    features = Table("feature", "", "how to fix")
    for feature in found["features"]:
        state = "missing: " + ", ".join(feature["missing"]) if feature["missing"] else "ready"
        features.add_row(feature["feature"], state, feature["hint"])
    if "response_ends" not in found:
        return [machine, features]
    ends = Table("a response ends with", "id", "named by", "taught by rpt sft")
    for end in found["response_ends"]:
        ends.add_row(end["token"], str(end["id"]), ", ".join(end["named_by"]), "yes" if end["taught"] else "")
    machine.add_row("thinking", f"{found['thinking']['mode']}: {found['thinking']['reason']}")
    return [machine, features, ends]
