"""The Ray executor on a cluster of two nodes: the bytes of the local one whatever dies, errors as they were raised,
and a driver that holds no more than what its workers are at."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import pytest

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Completion, Record, Shard
from pipeline.core.executor import LocalExecutor
from pipeline.core.hardware import cores
from pipeline.core.ray_executor import RayExecutor
from stages.score import score
from tests.selection.tables import documents_of
from tests.stages.published import cut, publish_tables

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.xdist_group("ray")

SHARDS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, so two workers of one thread."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


# ------------------------------------------------------------------------------------------- errors, memory


def test_a_workers_error_arrives_as_it_was_raised(cluster: Any, tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path / "work", address=cluster.address)
    with pytest.raises(UserError) as caught:
        list(executor.map(_refuse_three, range(8)))
    assert (caught.value.message, caught.value.where, caught.value.hint) == (
        "three is refused",
        "item 3",
        "leave it out",
    )
    assert not list((tmp_path / "work").iterdir()), "the marker of the work folder is gone"


def _refuse_three(item: int) -> int:
    if item == 3:
        raise UserError("three is refused", where="item 3", hint="leave it out")
    return item


def test_a_single_shard_gets_the_cores_of_one_node(cluster: Any, tmp_path: Path) -> None:
    """Half of the passes over a corpus are a single shard, and no worker can have the cores of two nodes."""
    executor = RayExecutor(tmp_path / "work", address=cluster.address)
    assert list(executor.map(_threads, [0])) == ["1"]


def _threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


class Specifications(Sequence[bytes]):
    """So many, each of 64 KB and made when it is asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.made = count, 0

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: Any) -> Any:
        self.made += 1
        return bytes([index % 256]) * 65_536


def test_the_driver_holds_only_what_its_workers_are_at(cluster: Any, tmp_path: Path) -> None:
    executor = RayExecutor(tmp_path / "work", address=cluster.address, workers=2)
    half_way = 0
    specifications = Specifications(3000)
    for answered, answer in enumerate(executor.map(_answer_as_much, specifications), 1):
        assert len(answer) == 65_536
        assert specifications.made <= answered + 2
        if answered == 1500:
            half_way = _resident()
    # The other 1,500 specifications and answers are 197 MB. Allocators take a while to find their size.
    assert _resident() - half_way < 60e6


def _answer_as_much(specification: bytes) -> bytes:
    return specification


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


# ---------------------------------------------------------------------------------------------------- faults


class Disturbed(RayExecutor):
    """Workers stand still in the middle of two shards until they are gone, and wait on the last shards until then."""

    def __init__(self, work: Path, signs: Path, doomed_node: str, address: str) -> None:
        super().__init__(work, address=address)
        self.signs, self.doomed_node = signs, doomed_node

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **how: Any) -> Iterator[Any]:
        disturbed = partial(_disturbed, function, self.signs, self.doomed_node)
        return super().map(disturbed, items, **how)


def _disturbed(function: Callable[[Shard], Completion], signs: Path, doomed_node: str, shard: Shard) -> Completion:
    directory = function.args[2]  # type: ignore[attr-defined]  # of `partial(_work, stage, config, directory)`
    doomed = ray.get_runtime_context().get_node_id() == doomed_node
    if shard.index == 2:
        _stop_half_way(directory, shard, signs, "worker")
    elif doomed:
        _stop_half_way(directory, shard, signs, "node")
    while shard.index >= SHARDS - 2 and not doomed and not {"worker", "node"} <= set(os.listdir(signs)):
        time.sleep(0.05)
    return function(shard)


def _stop_half_way(directory: Path, shard: Shard, signs: Path, name: str) -> None:
    """The first to come here leaves its process number and stops once its shard's table is begun, not yet published."""

    def stop() -> None:
        while not list(directory.glob(f"tmp/{shard.index:05d}.*/scores.parquet")):
            time.sleep(0.001)
        (signs / f"{name}.{shard.index}").rename(signs / name)
        os.kill(os.getpid(), signal.SIGSTOP)

    if not any(signs.glob(f"{name}*")):
        (signs / f"{name}.{shard.index}").write_text(str(os.getpid()))
        threading.Thread(target=stop).start()


def _kill(cluster: Any, signs: Path, log: list[str]) -> None:
    """Kill the worker that stands still on shard 2, and remove the node of the other one with its processes."""
    while len(log) < 2:
        for name in ("worker", "node"):
            if (signs / name).exists() and name not in log:
                if name == "node":
                    cluster.remove_node(cluster.second, allow_graceful=False)
                os.kill(int((signs / name).read_text()), signal.SIGKILL)
                log.append(name)
        time.sleep(0.02)


def test_workers_and_nodes_die_and_the_bytes_are_those_of_the_local_executor(
    cluster: Any, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    manifest = load(Manifest, repository / "data_manifests" / "demo.yaml")
    texts = [f"Problem: What is {n} + {n}?\nSolution: {n} + {n} = {2 * n}.\n" * (20 + n % 21) for n in range(60)]
    parts = [{"documents": part} for part in cut(documents_of(texts), len(texts) // SHARDS)]
    documents = publish_tables(tmp_path / "work", "ingest", parts)
    signs = tmp_path / "signs"
    signs.mkdir()
    log: list[str] = []
    threading.Thread(target=_kill, args=(cluster, signs, log), daemon=True).start()
    ours = Disturbed(tmp_path / "ray", signs, cluster.second.node_id, cluster.address)
    disturbed = score(manifest, documents, work=tmp_path / "ray", executor=ours)
    assert sorted(log) == ["node", "worker"], "both were lost while they worked"
    undisturbed = score(manifest, documents, work=tmp_path / "local", executor=LocalExecutor(cores()))
    assert _files(disturbed) == _files(undisturbed)
    assert len(_files(disturbed)) == SHARDS


def _files(record: Record) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(record.directory.glob("*.parquet"))}
