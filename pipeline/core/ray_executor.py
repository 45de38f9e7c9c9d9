"""The Ray executor: the same stages on the workers of a Ray cluster (extra `ray`, docs/scaling.md).

Only specifications of stages and shards, and completions, are sent over the network. Workers read and publish tables
themselves, in a work folder that every node sees. A shard whose node died is therefore simply computed again, and if it
had been published after all, the first finisher counts. Ray starts, places and watches the workers; a worker has one
shard at a time, and the driver as many calls in flight as there are workers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError, first_line
from pipeline.core.artifact import content_hash
from pipeline.core.executor import thread_settings
from pipeline.core.hardware import cores, gpus
from pipeline.core.progress import log

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

ATTEMPTS = 4
"""Deaths of workers on the same shard after which the run fails, because the shard itself kills them."""

PATIENCE = 30.0
"""Seconds without any worker before a message is logged, and seconds that a new file may take to become visible."""

_SOFTWARE = ("torch", "transformers", "tokenizers", "numpy", "polars", "pyarrow")


class Size(NamedTuple):
    """The request to Ray: number of workers, and cores and GPUs per worker (GPUs may be a fraction)."""

    workers: int
    cores: int
    gpus: float


class RayExecutor:
    """Workers of the Ray cluster at `address`, else at `RAY_ADDRESS`, else of one that is started on this machine.

    A worker computes with as many threads as it has cores, `cores of the cluster // workers` as in `LocalExecutor`, but
    at most those of the largest node. Where that number, the software and the kind of processor agree, the bytes agree.
    """

    def __init__(
        self, work: Path, *, address: str | None = None, workers: int | None = None, gpus: float | None = None
    ) -> None:
        """Set up the executor; Ray is connected at the first `map`.

        Args:
            work: the manifest's folder, which all nodes must see.
            address: address of a running cluster (`host:port`, or `auto` for the one this machine belongs to).
            workers: number of workers; by default one per core, or one per GPU share for stages that compute there.
            gpus: GPUs per worker for those stages, may be a fraction; by default one, if the cluster has some.

        Raises:
            UserError: Ray is not installed.
        """
        if find_spec("ray") is None:
            raise UserError("Ray is not installed", hint="pip install 'rpt[ray]'")
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._work, self._workers, self._gpus = work, workers, gpus
        self._devices: dict[Any, str] = {}

    @cached_property
    def _ray(self) -> Any:
        """Return the Ray module, connected at first use."""
        return _connect(self._address)

    @property
    def devices(self) -> Sequence[str]:
        """Return the device of each running worker."""
        return list(self._devices.values())

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Sequence[ItemT],
        *,
        accelerated: bool = False,
        planned: int | None = None,
    ) -> Iterator[ResultT]:
        """Run `function` on `items`; items of workers that died are run again.

        Raises:
            UserError: no cluster answers, no node is large enough for a worker, a node does not see the work folder
                or has other software, or a shard keeps killing its workers. Published shards stay.
        """
        if not items:
            return
        size = self._size(len(items), planned or len(items), accelerated)
        self._work.mkdir(parents=True, exist_ok=True)
        marker = self._work.absolute() / f".ray-{secrets.token_hex(8)}"
        marker.write_text(marker.name)
        pool = _WorkerPool(self._ray, size, marker, self._devices)
        try:
            yield from pool.run(function, items)
        finally:
            pool.stop()
            marker.unlink(missing_ok=True)

    def close(self) -> None:
        """Disconnect from the cluster, and stop it if it was started here; the end of the process does the same."""
        if "_ray" in self.__dict__:
            self._ray.shutdown()

    def _size(self, items: int, planned: int, accelerated: bool) -> Size:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        share = 1.0 if self._gpus is None and any(node.get("GPU") for node in nodes) else self._gpus or 0.0
        share = share if accelerated else 0.0
        total = sum(int(node.get("CPU", 0)) for node in nodes)
        slots = sum(int(node.get("GPU", 0) / share) for node in nodes) if share else total
        workers = min(self._workers or max(1, slots), planned)
        largest = max((int(node.get("CPU", 0)) for node in nodes if node.get("GPU", 0) >= share), default=0)
        size = Size(min(workers, items), max(1, min(total // workers, largest)), share)
        if not any(node.get("CPU", 0) >= size.cores and node.get("GPU", 0) >= share for node in nodes):
            offer = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UserError(
                f"no node of the Ray cluster has {size.cores} cores and {share:g} GPUs for a worker",
                where=f"nodes: {offer}",
                hint="ask for more --workers or less --num-gpus, or add a node",
            )
        return size


class _WorkerPool:
    """The workers of one `map`, and the current call of each."""

    def __init__(self, ray: Any, size: Size, marker: Path, devices: dict[Any, str]) -> None:
        self._ray, self._marker, self._devices = ray, marker, devices
        self._worker_class = ray.remote(_Worker).options(
            num_cpus=size.cores,
            num_gpus=size.gpus,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": thread_settings(size.cores)},
        )
        self._software = software()
        self._calls: dict[Any, tuple[Any, int | None]] = {}
        """Worker and its item (None: it is starting), by Ray's reference to the call."""
        for _ in range(size.workers):
            self._start_worker()

    def run(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]:
        """Yield results as they come. A dead worker is replaced, and its item goes to the next free worker."""
        fresh, again = iter(range(len(items))), list[int]()
        idle: list[Any] = []
        deaths: Counter[int | None] = Counter()
        left = len(items)
        while left:
            # Items of dead workers go first, so that a shard that kills its workers is found out early.
            while idle and (item := again.pop() if again else next(fresh, None)) is not None:
                worker = idle.pop()
                self._calls[worker.run.remote(function, items[item])] = worker, item
            call, worker, at = self._next_answer()
            try:
                result = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:  # the function itself failed: re-raise its own exception
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                deaths[at] += 1
                if deaths[at] >= ATTEMPTS:
                    raise _too_many_deaths(at, error) from error
                if at is not None:
                    again.append(at)
                    log("ray          a worker died: another one computes its shard again")
                self._stop_worker(worker)
                self._start_worker()
                continue
            idle.append(worker)
            if at is None:
                deaths[None] = 0
                self._devices[worker] = result
            else:
                left -= 1
                yield result

    def stop(self) -> None:
        """Stop all workers, including busy ones."""
        for worker in {worker for worker, _ in self._calls.values()} | set(self._devices):
            self._stop_worker(worker)

    def _next_answer(self) -> tuple[Any, Any, int | None]:
        while True:
            done, _ = self._ray.wait(list(self._calls), timeout=PATIENCE)
            if done:
                return done[0], *self._calls.pop(done[0])
            if not self._devices:
                log("ray          no worker could start yet: waiting for free cores or GPUs on the cluster")

    def _start_worker(self) -> None:
        worker = self._worker_class.remote()
        self._calls[worker.begin.remote(os.getcwd(), str(self._marker), self._software)] = worker, None

    def _stop_worker(self, worker: Any) -> None:
        self._devices.pop(worker, None)
        self._ray.kill(worker)


class _Worker:
    """A worker process on a node, which calls the stage's function."""

    def begin(self, folder: str, marker: str, expected: Mapping[str, str]) -> str:
        """Change to the driver's folder, check that it is the same folder and software, and return the device's name.

        Raises:
            UserError: this node does not see the folders, or has other versions of the software.
        """
        node = platform.node()
        until = time.monotonic() + PATIENCE  # a network file system may show a new file late
        while not (os.path.isdir(folder) and os.path.isfile(marker)):
            if time.monotonic() > until:
                raise UserError(
                    f"the Ray node {node} does not see the work folder",
                    where=os.path.dirname(marker),
                    hint="put --work, and start `rpt`, on a file system that all nodes mount at the same path",
                )
            time.sleep(0.5)
        os.chdir(folder)
        if found := [f"{name} {mine}" for name, mine in software().items() if mine != expected[name]]:
            raise UserError(
                f"the Ray node {node} has other versions than the driver: {', '.join(found)}",
                hint="install the same version of rpt and the same requirements.lock on all nodes",
            )
        return gpus()[0].name if os.environ.get("CUDA_VISIBLE_DEVICES") and gpus() else "CPU"

    def run(self, function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT:
        """Compute one shard."""
        return function(item)


def software() -> dict[str, str]:
    """Return the versions, and a hash of the code, that must agree on all nodes for the same bytes."""
    found = {name: metadata.version(name) for name in _SOFTWARE}
    root = Path(__file__).parents[2]
    code = sorted(path for package in ("pipeline", "stages") for path in (root / package).rglob("*.py"))
    contents = canonical_json([[str(path.relative_to(root)), content_hash(path)] for path in code])
    digest = hashlib.sha256(contents.encode()).hexdigest()[:12]
    return found | {"python": platform.python_version(), "rpt": digest}


def _too_many_deaths(item: int | None, error: Exception) -> UserError:
    if item is None:
        reason = str(error).strip().splitlines()[-1].strip()
        return UserError(
            "workers cannot start on the Ray cluster", where=reason, hint="is rpt installed on all of its nodes?"
        )
    return UserError(
        f"{ATTEMPTS} workers died on the same shard, most often for lack of memory",
        hint="run the same command again to resume, with fewer --workers or on larger nodes",
    )


# ---------------------------------------------------------------------------------------------- connecting


def _connect(address: str | None) -> Any:
    """Return the Ray module, connected. A cluster started here is on loopback only, with a token and no dashboard."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if (
        address is None and "ray" not in sys.modules
    ):  # Ray reads these when it is imported; an earlier import has decided already
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # with 0, Ray binds to loopback only
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    ray._private.worker.print_to_stdstream = _relay
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"logging_level": "critical", "log_to_driver": True}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=cores(),
                num_gpus=len(gpus()),
                include_dashboard=False,
                object_store_memory=100 * 1024**2,  # only small objects are sent
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except Exception as error:
        raise UserError("no Ray cluster answers", where=address or "this machine", hint=first_line(error)) from error
    return ray


def _relay(data: Any, ignore_prefix: bool) -> None:
    """Log what workers print to standard error, without Ray's messages about dead workers, which are logged here."""
    if data["pid"] != "raylet" and data["is_err"]:
        for line in data["lines"]:
            log(line)
