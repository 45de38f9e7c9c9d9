"""`rpt train` and the baselines: from shards, or questions, to a policy. Compute runs in processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.config import Recipe, load, manifest_of
from pipeline.core.executor import interrupts_ignored
from pipeline.core.progress import say
from stages.commands.options import (
    POLICY,
    Flops,
    FlopsOf,
    ManifestOption,
    Overrides,
    PolicyFolder,
    Ranks,
    RecipePath,
    Run,
    Tokens,
    Topology,
    Work,
)

commands = typer.Typer()


@commands.command(rich_help_panel=POLICY)
def train(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    vllm_server: Annotated[
        str | None, typer.Option(help="A vLLM that samples: http://host:port.  [default: none, or in this process]")
    ] = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Shards → policy: DeepSpeed ZeRO-3 GRPO with the prefix-matching reward. Resumes by itself.

    Several nodes: start `deepspeed --hostfile … --module stages.train …` yourself (docs/training.md).

    Examples:

        rpt train recipes/demo.yaml

        rpt train recipes/demo.yaml --ranks 2 --set budget.steps=20 --run runs/short
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, overrides)
    arguments += ["--vllm-server", vllm_server] if vllm_server else []
    launch("stages.train", arguments, ranks)


def launch(module: str, arguments: list[str], ranks: int) -> None:
    """Start a compute page in fresh processes, whose allocator and threads are set before torch is loaded."""
    environment = os.environ | {
        # Page faults of large short-lived tensors stall CPU runs by up to ten times: keep freed memory.
        "MALLOC_MMAP_MAX_": os.environ.get("MALLOC_MMAP_MAX_", "0"),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(1 << 40)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", module, *arguments]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher += ["--signals-to-handle=SIGTERM,SIGHUP,SIGQUIT", "--module"]
        command = [sys.executable, *launcher, "--", module, *arguments]  # `--run` is not the launcher's --run-path
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    with interrupts_ignored():  # by all of them: Ctrl-C is passed on from here
        process = subprocess.Popen(command, env=environment)

    def send(number: int, _: object = None) -> None:
        """To the ranks themselves: asked to end, they save and exit with 0, where torchrun ends them after a while."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            for rank in psutil.Process(process.pid).children() if ranks > 1 else [process]:
                rank.send_signal(number)

    signal.signal(signal.SIGTERM, send)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        try:
            say("interrupted: the step that runs is ended and saved; Ctrl-C again ends at once")
            send(signal.SIGTERM)
            process.wait()
        except KeyboardInterrupt:
            send(signal.SIGKILL)
            process.kill()
        raise
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


@commands.command(rich_help_panel=POLICY)
def ntp(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-ntp]")] = None,
) -> None:
    """Baseline: next-token training of the policy on the corpus' plain text, by the same engine. Resumes by itself.

    Ends after the recipe's `budget.steps`, or when as much is spent as an option says.

    Examples:

        rpt ntp recipes/demo.yaml --set optimizer.lr=1e-4

        rpt ntp recipes/demo.yaml --flops-of runs/demo
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, _from_policy(policy, overrides))
    launch("stages.ntp", [*arguments, *_of_budget(flops_of, flops, tokens)], ranks)


@commands.command(rich_help_panel=POLICY)
def sft(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="Imitate the right responses that this run saved.  [default: true tokens, no thought]"
        ),
    ] = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-sft]")] = None,
) -> None:
    """Baseline: supervised training on contexts, thoughts and what follows, by the same engine. Resumes by itself.

    Ends after the recipe's `budget.steps`, or when as much is spent as an option says.

    Examples:

        rpt sft recipes/demo.yaml

        rpt sft recipes/demo.yaml --rollouts runs/demo --flops-of runs/demo --set supervised.plain_text=0.5
    """
    arguments = _of_run(recipe, manifest, work, run, deepspeed, _from_policy(policy, overrides))
    arguments += [word for path in rollouts or () for word in ("--rollouts", str(path))]
    launch("stages.sft", [*arguments, *_of_budget(flops_of, flops, tokens)], ranks)


@commands.command(rich_help_panel=POLICY)
def finetune(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: Overrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Questions with known answers → policy, by the GRPO of `rpt train`; accuracy before and after. Resumes by itself.

    The questions are kept beside the manifest's artifacts; nothing else of the manifest is used.

    Examples:

        python -m demo.questions && rpt finetune recipes/demo-finetune.yaml

        rpt finetune recipes/demo-finetune.yaml --policy runs/demo/policy --run runs/demo-finetuned
    """
    from pipeline.core.executor import LocalExecutor
    from stages.finetune import questions

    changed = _from_policy(policy, overrides)
    arguments = _of_run(recipe, manifest, work, run, deepspeed, changed)
    read = load(Recipe, recipe, changed)
    record = questions(read, work=work / manifest_of(read, manifest).name, executor=LocalExecutor(1))
    arguments += ["--questions", str(record.directory)]
    launch("stages.train", arguments, ranks)
    launch("stages.finetune", arguments, 1)


def _of_run(
    recipe: Path,
    manifest: Path | None,
    work: Path,
    run: Path | None,
    deepspeed: Path | None,
    overrides: list[str] | None,
) -> list[str]:
    """The arguments of a page that trains. A misspelt key fails here, before anything heavy starts."""
    arguments = of_recipe(recipe, manifest, work, run, overrides)
    return arguments + (["--deepspeed-config", str(deepspeed)] if deepspeed else [])


def of_recipe(
    recipe: Path, manifest: Path | None, work: Path, run: Path | None, overrides: list[str] | None
) -> list[str]:
    """The arguments of a page that takes a recipe, once the recipe and its manifest have been read."""
    manifest_of(load(Recipe, recipe, overrides or ()), manifest)
    arguments = [str(recipe), *(["--manifest", str(manifest)] if manifest else []), "--work", str(work)]
    arguments += ["--run", str(run)] if run else []
    return arguments + [word for override in overrides or () for word in ("--set", override)]


def _from_policy(policy: Path | None, overrides: list[str] | None) -> list[str]:
    """The overrides, and those that say where the policy comes from."""
    return [*(overrides or ()), *([f"policy.model={policy}", "policy.revision=null"] if policy else [])]


def _of_budget(flops_of: Path | None, flops: float | None, tokens: int | None) -> list[str]:
    given = {"--flops-of": flops_of, "--flops": flops, "--tokens": tokens}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]
