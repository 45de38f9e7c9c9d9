"""Start the processes of a stage on this machine, and pass Ctrl-C and SIGTERM on to them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipeline.core.progress import console, log
from pipeline.grpo.policy.rendezvous import MEETING_FILE

if TYPE_CHECKING:
    from pipeline.grpo.run.spec import RunSpec


def launch(module: str, spec: RunSpec, ranks: int = 1) -> None:
    """Run a stage on a specification in new processes, and exit with their code if it is not 0.

    Allocator and threads are set by the environment, because torch reads them when it is loaded.
    """
    from pipeline.grpo.run.spec import write_spec

    environment = os.environ | {
        # Page faults of large short-lived tensors stall CPU runs by up to ten times: keep freed memory.
        "MALLOC_MMAP_MAX_": os.environ.get("MALLOC_MMAP_MAX_", "0"),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(1 << 40)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory(prefix="rpt-ranks-") as folder:
        meeting, file = Path(folder), Path(folder) / "spec.json"
        write_spec(spec, file)
        command = [sys.executable, "-m", module, str(file)]
        if ranks > 1:
            command = [sys.executable, *_launcher(ranks, meeting), "--", module, str(file)]
            environment = _rank_environment(ranks, meeting) | environment
        if console.is_terminal:
            log(f"{module.rpartition('.')[2]:<12} loads its libraries, which takes some seconds")
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
    from pipeline.core.executor import ignore_interrupts

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
