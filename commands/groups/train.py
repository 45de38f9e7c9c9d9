"""The commands that train a policy: `rpt train`, the baselines and `rpt finetune`; training runs in child processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from commands.groups.options import (
    POLICY,
    Flops,
    FlopsOf,
    ManifestOption,
    PolicyFolder,
    Ranks,
    RecipeOverrides,
    RecipePath,
    Run,
    Tokens,
    Topology,
    Work,
)
from pipeline.config.loading import load, manifest_of
from pipeline.config.recipe import Recipe
from pipeline.core.executor import ignore_interrupts
from pipeline.core.progress import log
from pipeline.grpo.policy.rendezvous import MEETING_FILE

commands = typer.Typer()


@commands.command(rich_help_panel=POLICY)
def train(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    vllm_server: Annotated[
        str | None, typer.Option(help="Sample with the vLLM server at http://host:port.  [default: in this process]")
    ] = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Train the policy on the shards by DeepSpeed ZeRO-3 GRPO with the prefix-matching reward; resumes automatically.

    For several nodes start `deepspeed --hostfile … --module stages.train …` yourself (docs/training.md).

    Examples:

        rpt train recipes/demo.yaml

        rpt train recipes/demo.yaml --ranks 2 --set budget.steps=20 --run runs/short
    """
    arguments = _training_arguments(recipe, manifest, work, run, deepspeed, overrides)
    arguments += ["--vllm-server", vllm_server] if vllm_server else []
    launch("stages.train", arguments, ranks)


def launch(module: str, arguments: list[str], ranks: int) -> None:
    """Run a stage in new processes, whose allocator and threads are set before torch is loaded."""
    environment = os.environ | {
        # Page faults of large short-lived tensors stall CPU runs by up to ten times: keep freed memory.
        "MALLOC_MMAP_MAX_": os.environ.get("MALLOC_MMAP_MAX_", "0"),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(1 << 40)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory(prefix="rpt-ranks-") as meeting:
        command = [sys.executable, "-m", module, *arguments]
        if ranks > 1:
            command = [sys.executable, *_launcher(ranks, Path(meeting)), "--", module, *arguments]
            environment = _rank_environment(ranks, Path(meeting)) | environment
        code = _run_command(command, environment, ranks)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def _launcher(ranks: int, meeting: Path) -> list[str]:
    """Return the command of torch's launcher, whose processes meet in a file: a port would be open to the network."""
    rendezvous = [
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={meeting / 'launcher'}",
    ]
    # The launcher kills the ranks 30 seconds after a signal that it handles; the signals we send go to the ranks only.
    return [
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={ranks}",
        "--signals-to-handle=SIGQUIT",
        "--module",
    ]


def _rank_environment(ranks: int, meeting: Path) -> dict[str, str]:
    """Return default environment variables of several ranks on this machine, which use the loopback interface only."""
    import psutil

    addresses = psutil.net_if_addrs().items()
    loopback = next((name for name, own in addresses if any(each.address == "127.0.0.1" for each in own)), None)
    networks = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"} if loopback else {}
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    no_port = {MEETING_FILE: str(meeting / "ranks"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {"OMP_NUM_THREADS": threads, **networks, **no_port}


def _run_command(command: list[str], environment: dict[str, str], ranks: int) -> int:
    """Run a command and return its exit code; on SIGTERM or Ctrl-C its ranks finish their step and save first."""

    def send(number: int, _: object = None) -> None:
        """Send a signal to the ranks themselves: on SIGTERM they save and exit with 0."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children() if ranks > 1 else [process]
            for rank in started:
                rank.send_signal(number)
            if not started:
                process.kill()  # no rank has started, so there is nothing to save

    # SIGTERM may be sent to the whole process group. The children inherit the blocked mask: the signal never reaches
    # the launcher, and stays pending in a rank until that rank handles it (`stop_signal`).
    several = {signal.SIGTERM} if ranks > 1 else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, several)
    with ignore_interrupts():  # inherited by the children: Ctrl-C is passed on from here
        process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, send)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            log("interrupted: finishing and saving the current step (Ctrl-C again to quit now)")
            send(signal.SIGTERM)
            process.wait()
        except KeyboardInterrupt:
            send(signal.SIGKILL)
            process.kill()
        raise


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
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-ntp]")] = None,
) -> None:
    """Baseline: next-token training on the plain text of the corpus; same engine; resumes automatically.

    Runs the recipe's `budget.steps`, or instead up to the limit that an option sets.

    Examples:

        rpt ntp recipes/demo.yaml --set optimizer.lr=1e-4

        rpt ntp recipes/demo.yaml --flops-of runs/demo
    """
    arguments = _training_arguments(recipe, manifest, work, run, deepspeed, _with_policy(policy, overrides))
    launch("stages.ntp", [*arguments, *_budget_arguments(flops_of, flops, tokens)], ranks)


@commands.command(rich_help_panel=POLICY)
def sft(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    rollouts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Imitate the correct responses that this run saved.  [default: true tokens without reasoning]",
        ),
    ] = None,
    policy: PolicyFolder = None,
    flops_of: FlopsOf = None,
    flops: Flops = None,
    tokens: Tokens = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Annotated[Path | None, typer.Option(help="Folder of the run.  [default: runs/NAME-sft]")] = None,
) -> None:
    """Baseline: supervised fine-tuning on (context, reasoning, continuation); same engine; resumes automatically.

    Runs the recipe's `budget.steps`, or instead up to the limit that an option sets.

    Examples:

        rpt sft recipes/demo.yaml

        rpt sft recipes/demo.yaml --rollouts runs/demo --flops-of runs/demo --set supervised.plain_text=0.5
    """
    arguments = _training_arguments(recipe, manifest, work, run, deepspeed, _with_policy(policy, overrides))
    arguments += [word for path in rollouts or () for word in ("--rollouts", str(path))]
    launch("stages.sft", [*arguments, *_budget_arguments(flops_of, flops, tokens)], ranks)


@commands.command(rich_help_panel=POLICY)
def finetune(
    recipe: RecipePath,
    manifest: ManifestOption = None,
    policy: PolicyFolder = None,
    ranks: Ranks = 1,
    deepspeed: Topology = None,
    overrides: RecipeOverrides = None,
    work: Work = Path("work"),
    run: Run = None,
) -> None:
    """Train on questions with known answers by GRPO and report accuracy before and after; resumes automatically.

    The prepared questions are stored beside the manifest's artifacts; nothing else of the manifest is used.

    Examples:

        python -m demo.questions && rpt finetune recipes/demo-finetune.yaml

        rpt finetune recipes/demo-finetune.yaml --policy runs/demo/policy --run runs/demo-finetuned
    """
    from pipeline.core.executor import LocalExecutor
    from stages.finetune import questions

    changed = _with_policy(policy, overrides)
    arguments = _training_arguments(recipe, manifest, work, run, deepspeed, changed)
    read = load(Recipe, recipe, changed)
    record = questions(read, work=work / manifest_of(read, manifest).name, executor=LocalExecutor(1))
    arguments += ["--questions", str(record.directory)]
    launch("stages.train", arguments, ranks)
    launch("stages.finetune", arguments, 1)


def _training_arguments(
    recipe: Path,
    manifest: Path | None,
    work: Path,
    run: Path | None,
    deepspeed: Path | None,
    overrides: list[str] | None,
) -> list[str]:
    """Return the arguments of a stage that trains. A misspelt key fails here, before anything heavy starts."""
    arguments = recipe_arguments(recipe, manifest, work, run, overrides)
    return arguments + (["--deepspeed-config", str(deepspeed)] if deepspeed else [])


def recipe_arguments(
    recipe: Path, manifest: Path | None, work: Path, run: Path | None, overrides: list[str] | None
) -> list[str]:
    """Check the recipe and its manifest, and return the arguments of a stage that takes a recipe."""
    manifest_of(load(Recipe, recipe, overrides or ()), manifest)
    arguments = [str(recipe), *(["--manifest", str(manifest)] if manifest else []), "--work", str(work)]
    arguments += ["--run", str(run)] if run else []
    return arguments + [word for override in overrides or () for word in ("--set", override)]


def _with_policy(policy: Path | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides together with those that replace the policy."""
    return [*(overrides or ()), *([f"policy.model={policy}", "policy.revision=null"] if policy else [])]


def _budget_arguments(flops_of: Path | None, flops: float | None, tokens: int | None) -> list[str]:
    """Return the arguments of the budget options that were given."""
    given = {"--flops-of": flops_of, "--flops": flops, "--tokens": tokens}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]
