"""The folder of a run: its identity, its checkpoints and its log. Starts without torch.

recipe.yaml      as resolved, overrides applied
run.json         what it was made from: shards, base policy and the run that trained it, versions, commit
metrics.jsonl    a line a step
events.out.*     the same for TensorBoard
probe.json       what was sampled before the first step
prompt.json      the rendered prompt, which a resume takes from here
rollouts/        responses of every n-th step, Parquet
checkpoints/     what a resume needs
policy/          the trained policy, a `transformers` folder; its existence means that the run is complete
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.base import canonical_json, differences
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, content_hash
from pipeline.core.files import replace_text
from pipeline.core.progress import log
from pipeline.core.sealed import read_sealed, replace_sealed
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.policy.rendezvous import is_first_rank
from pipeline.grpo.rollout.prompt import KEPT, PromptText
from pipeline.grpo.rollout.response_ends import ResponseEnds
from pipeline.grpo.run.lineage import origin_of

RECORD = "run.json"
"""Name of the file in a run's folder that says what the run was made from."""

MAY_CHANGE = ("name", "description", "budget", "evaluate", "screen", "supervised", "warmup", "questions", "track")
"""Keys of a recipe that do not change what a step does: a run can be resumed to go on for longer. Nor do those that the
models mark as `execution`; and the policy is known by its content, wherever it lies."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run, known before its policy is loaded: what is trained, on what, and where."""

    command: str
    """The `rpt` command, for messages."""
    folder: Path
    recipe: Recipe
    base: Path
    """Folder of the policy before training."""
    own: Mapping[str, Any]
    """Identity of the run: a checkpoint of another one is refused."""
    steps: int
    """Most steps of the whole run."""
    made_from: Mapping[str, Record]
    """By name, the stages whose output is trained on."""

    @property
    def policy(self) -> Path:
        """Return the folder of the trained policy."""
        return self.folder / "policy"

    def ends_at(self, step: int, sampled: int) -> bool:
        """Return whether the run has done all its steps, or has sampled as many tokens as it may."""
        most = self.recipe.budget.sampled_tokens
        return step >= self.steps or (most is not None and sampled >= most)


def layout_of(recipe: Recipe, zero_stage: int, ranks: int) -> dict[str, Any]:
    """Return how a run is distributed and executed: recorded with it, and logged when it changes."""
    return {"zero_stage": zero_stage, "ranks": ranks, "execution": recipe.execution_settings()}


def identity(recipe: Recipe, shards: Record, policy: str, screening: Record | None = None) -> dict[str, Any]:
    """Return what must be equal for a resumed run to be the same run.

    Args:
        recipe: all of it that changes a step.
        shards: what is trained on.
        policy: digest of the policy that training starts from.
        screening: what the recipe chooses its sites by, if it does.
    """
    screened = {} if screening is None else {"screening": screening.content}
    return screened | {
        "recipe": {key: value for key, value in recipe.identity().items() if key not in MAY_CHANGE},
        "shards": shards.content,
        "policy": policy,
    }


OTHER_CHECKPOINT = (
    "write the name of an earlier checkpoint into `checkpoints/latest`, or train into another --run folder"
)


def spoken(text: PromptText, ends: ResponseEnds) -> dict[str, Any]:
    """Return the part of a run's identity that tokenizer and template decide, as JSON values: prompt and ends."""
    prompt = asdict(text) | {"thinking": text.thinking._asdict()}
    return {"prompt": prompt, "ends": sorted(ends.ids)}


def must_be_same(was: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Check that a run is resumed with the identity it was started with.

    Raises:
        UserError: the identity changed; the message lists what differs, field by field.
    """
    if changed := differences(was, now):
        raise UserError(
            f"cannot resume, because the configuration changed: {'; '.join(changed)}",
            where=run,
            hint="undo the change, or train into another --run folder",
        )


def latest_checkpoint(run: Path) -> Path | None:
    """Return the last whole checkpoint of a run, or None."""
    pointer = run / "checkpoints" / "latest"
    if not pointer.exists():
        return max(whole_checkpoints(run), default=None)
    folder = pointer.parent / pointer.read_text(encoding="utf-8", errors="replace").strip()
    if folder.parent != pointer.parent or not (folder / "state.json").is_file():
        raise IntegrityError(f"names no whole checkpoint: {folder.name!r}", where=pointer, hint=OTHER_CHECKPOINT)
    return folder


def whole_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run that were written to their end, in the order of their steps."""
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*/state.json"))


def name_of_step(step: int) -> str:
    """Return the name of the checkpoint after a step."""
    return f"step-{step:06d}"


def write_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Write `state.json`, the last of a checkpoint's files, atomically and with a checksum of its own."""
    replace_text(checkpoint / "state.json", _sealed(state))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return `state.json` of a checkpoint: its `step`, `draws` of sites, `identity`, `layout` and `files`.

    Raises:
        IntegrityError: it is not what was written.
    """
    path = checkpoint / "state.json"
    try:
        text = path.read_bytes().decode()
        state = json.loads(text)
        del state["sha256"]
        whole = text == _sealed(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise IntegrityError("a checkpoint's state is not what was written", where=path, hint=OTHER_CHECKPOINT)
    return dict(state)


def _sealed(state: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(canonical_json(state).encode()).hexdigest()
    return json.dumps({"sha256": seal, **state}, indent=1, ensure_ascii=False)


def files_of(checkpoint: Path) -> list[str]:
    """Return the files of a checkpoint besides `state.json`, by their paths in it."""
    found = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in ("state.json", ".state.json"))


def must_be_intact(checkpoint: Path, names: Sequence[str], written: Mapping[str, str]) -> None:
    """Compare files of a checkpoint with the hashes they were written with.

    Raises:
        IntegrityError: one is missing, changed, or was not written with the others.
    """
    for name in names:
        path = checkpoint / name
        if not path.is_file():
            raise IntegrityError("a checkpoint's file is missing", where=path, hint=OTHER_CHECKPOINT)
        if name not in written or content_hash(path) != written[name]:
            raise IntegrityError("a checkpoint's file is not what was written", where=path, hint=OTHER_CHECKPOINT)


def damage_of(checkpoint: Path) -> dict[str, str]:
    """Return the damage found in the files of a checkpoint, by path."""
    found: dict[str, str] = {}
    try:
        state = read_state(checkpoint)
    except IntegrityError as error:
        return {error.where: error.message}
    written = state["files"]
    if checkpoint.name != name_of_step(state["step"]):
        found[str(checkpoint / "state.json")] = f"is of step {state['step']}"
    for name in sorted({*files_of(checkpoint), *written}):
        try:
            must_be_intact(checkpoint, [name], written)
        except IntegrityError as error:
            found[error.where] = error.message
    return found


def damage_of_record(run: Path) -> dict[str, str]:
    """Return the damage found in `run.json` and in the files whose hashes it has, by path."""
    try:
        files = read_sealed(run / RECORD).get("files", {})
    except IntegrityError as error:
        return {error.where: error.message}
    changed = [run / name for name, sha256 in files.items() if not _has_hash(run / name, sha256)]
    return {str(path): "is missing or not what was written" for path in changed}


def _has_hash(path: Path, sha256: str) -> bool:
    return path.is_file() and content_hash(path) == sha256


def is_up_to_date(run: TrainingRun) -> bool:
    """Return True, and log it, if the run has done all its steps and exported its policy.

    Raises:
        UserError: what lies there is another run.
    """
    checkpoint = latest_checkpoint(run.folder)
    if checkpoint is None:
        return False
    state = read_state(checkpoint)
    must_be_same(state["identity"], run.own, run.folder)
    sampled = state["spent"].get("sampled", 0)  # not counted in older checkpoints
    if not run.ends_at(state["step"], sampled) or not run.policy.is_dir():
        return False
    if is_first_rank():
        log(f"{run.command:<12} up to date  {run.policy}")
    return True


def policy_tokenizer(base: Path, shards: Record) -> CorpusTokenizer:
    """Return the tokenizer of the policy in `base`.

    Raises:
        UserError: the shards' targets and boundaries are another tokenizer's tokens.
    """
    tokens = CorpusTokenizer.load(base)
    if tokens.digest != shards.inputs["policy_tokenizer"]:
        raise UserError(
            "the shards were cut with another tokenizer than the policy's",
            where=base,
            hint=f"run `rpt data` with `materialize.policy_tokenizer={base}`",
        )
    return tokens


def describe(run: TrainingRun, layout: Mapping[str, Any]) -> None:
    """Write `recipe.yaml`, as resolved, and `run.json`: what is trained on, versions, and how it is distributed.

    `run.json` is sealed, and has the hashes of `recipe.yaml` and of the stored prompt.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    recipe = run.recipe
    tree = recipe.model_dump(mode="json")
    replace_text(run.folder / "recipe.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    about = {
        "command": run.command,
        "base": {
            "model": recipe.policy.model,
            "revision": recipe.policy.revision,
            "digest": run.own["policy"],
            "read_from": str(run.base),
        },
        "policy_from": origin_of(run.base),
        **{
            name: {"fingerprint": record.fingerprint, "content": record.content, "directory": str(record.directory)}
            for name, record in run.made_from.items()
        },
        "layout": dict(layout),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("rpt", "torch", "deepspeed", "transformers", "tokenizers")},
        "commit": _commit(),
        "files": {
            path.name: content_hash(path) for path in (run.folder / "recipe.yaml", run.folder / KEPT) if path.exists()
        },
    }
    replace_sealed(run.folder / RECORD, about)


@contextmanager
def locked(run: TrainingRun, patience: float = 10.0) -> Iterator[None]:
    """Claim the run's folder for rank 0 within the block; the claim ends with the process, too, however it ends.

    Raises:
        UserError: another process still has it after `patience` seconds.
    """
    if not is_first_rank():
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / ".lock").open("w") as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    hint = "wait for it, or give another --run"
                    message = "another process trains into this folder"
                    raise UserError(message, where=run.folder, hint=hint) from None
                time.sleep(0.1)
        yield


class MetricsLog:
    """The log of a run in `metrics.jsonl` and TensorBoard; lines after the step resumed from are removed."""

    def __init__(self, run: Path, resumed_step: int | None) -> None:
        """Open the log at `resumed_step`, the step of the checkpoint resumed from; None starts over."""
        from pipeline.grpo.run.tensorboard_log import TensorBoardLog

        self._path = run / "metrics.jsonl"
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        keep = [line for line in lines if resumed_step is not None and json.loads(line)["step"] <= resumed_step]
        replace_text(self._path, "".join(f"{line}\n" for line in keep))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = TensorBoardLog(run, resumed_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line: the metrics measured after `step` updates."""
        self._file.write(json.dumps({"step": step} | dict(metrics)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.write(step, metrics)

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this code, marked if it was changed since; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head} (changed)" if status.stdout.strip() else head
