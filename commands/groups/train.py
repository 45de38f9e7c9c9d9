"""`rpt train` and the baselines: from shards, or questions, to a policy. Compute runs in processes of its own."""

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
    Overrides,
    PolicyFolder,
    Ranks,
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
    with tempfile.TemporaryDirectory(prefix="rpt-ranks-") as meeting:
        command = [sys.executable, "-m", module, *arguments]
        if ranks > 1:
            command = [sys.executable, *_launcher(ranks, Path(meeting)), "--", module, *arguments]
            environment = _of_ranks(ranks, Path(meeting)) | environment
        code = _run_to_end(command, environment, ranks)
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


def _launcher(ranks: int, meeting: Path) -> list[str]:
    """Torch's launcher, whose processes find each other by a file: a port would be open to the network."""
    found_by = [
        "--nnodes=1",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={meeting / 'launcher'}",
    ]
    # On the signals that it handles the launcher ends the ranks after 30 seconds; those we send reach the ranks alone.
    return [
        "-m",
        "torch.distributed.run",
        *found_by,
        f"--nproc-per-node={ranks}",
        "--signals-to-handle=SIGQUIT",
        "--module",
    ]


def _of_ranks(ranks: int, meeting: Path) -> dict[str, str]:
    """What several ranks of this machine find in their environment, unless it is set: they talk over loopback only."""
    import psutil

    addresses = psutil.net_if_addrs().items()
    loopback = next((name for name, own in addresses if any(each.address == "127.0.0.1" for each in own)), None)
    networks = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"} if loopback else {}
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    no_port = {MEETING_FILE: str(meeting / "ranks"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {"OMP_NUM_THREADS": threads, **networks, **no_port}


def _run_to_end(command: list[str], environment: dict[str, str], ranks: int) -> int:
    """The exit code of a command. SIGTERM and Ctrl-C let its ranks end their step and save, however long that takes."""

    def send(number: int, _: object = None) -> None:
        """To the ranks themselves: asked to end, they save and exit with 0."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children() if ranks > 1 else [process]
            for rank in started:
                rank.send_signal(number)
            if not started:
                process.kill()  # nothing runs yet that could be saved

    # SIGTERM may come to the whole process group. Blocked from its start on, it does not reach the launcher, and waits
    # for a rank until that can take it (`stop_signal`).
    several = {signal.SIGTERM} if ranks > 1 else set()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, several)
    with ignore_interrupts():  # by all of them: Ctrl-C is passed on from here
        process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, send)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            log("interrupted: the step that runs is ended and saved; Ctrl-C again ends at once")
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
