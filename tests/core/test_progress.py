"""What the progress line says: counts, rate, utilisation and time left by hand; plain lines without a terminal."""

from __future__ import annotations

import time

import pytest

from pipeline.core import progress as module
from pipeline.core.hardware import visible_gpus
from pipeline.core.progress import Throughput, progress_bar


def test_nothing_is_promised_before_the_first_shard_is_done() -> None:
    meter = Throughput(total=4, unit="tokens", flops=1e9, begin=0.0)
    assert meter.describe(["CPU", "CPU"], now=50.0) == "0 of 4 shards, 2 running, 2 waiting"
    meter.advance(1, 500)
    meter.advance(1, 500)
    # 2 done, 2 running that count as half: 3 of 4 in 100 s, so 33 s left; a CPU's peak is not known.
    assert meter.describe(["CPU", "CPU"], now=100.0) == (
        "2 of 4 shards, 2 running, 0 waiting, 1,000 tokens, 10 tokens/s, 33 s left"
    )
    meter.advance(2, 1000)
    assert meter.describe(["CPU", "CPU"], now=100.0) == (
        "4 of 4 shards, 0 running, 0 waiting, 2,000 tokens, 20 tokens/s, 0 s left"
    )


def test_what_is_done_within_shards_counts_at_once() -> None:
    """And what an earlier run had done of them counts as done, not as fast."""
    reports = [(0.25, 3_000), (0.5, 6_000), (0.5, 6_000)]
    meter = Throughput(total=2, unit="tokens", begin=0.0, within=iter(reports).__next__)
    # 3,000 tokens and a quarter of a shard in 10 s; a shard and a half are left at 0.25 per 10 s.
    assert meter.describe(["CPU"], now=10.0) == (
        "0 of 2 shards, 1 running, 1 waiting, 6,000 tokens, 300 tokens/s, 1 min left"
    )
    meter.advance(1, 12_000)  # the other shard, too: 18,000 tokens of which 3,000 were there before
    assert meter.describe(["CPU"], now=50.0) == (
        "1 of 2 shards, 1 running, 0 waiting, 18,000 tokens, 300 tokens/s, 20 s left"
    )


def test_utilisation_is_of_all_workers_devices() -> None:
    meter = Throughput(total=9, unit="tokens", flops=2 * 1.5e9, done=3, units=33_000_000, begin=0.0)
    # 330,000 tokens/s · 3 GFLOP = 990 TFLOP/s of 989 + 756
    assert "MFU 57 %" in meter.describe(["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"], now=100.0)
    assert "MFU" not in meter.describe(["NVIDIA H100 80GB HBM3", "Voodoo 2"], now=100.0)


def test_lines_appear_while_a_shard_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "FIRST_LINES", (0.01,))
    monkeypatch.setattr(module, "LINE_EVERY", 0.05)
    said: list[str] = []
    monkeypatch.setattr(module, "log", said.append)
    with progress_bar("score", Throughput(2, "tokens"), lambda: ["CPU"]) as advance:
        advance(1, 10)
        until = time.monotonic() + 300  # a hang, not a slow machine
        while len(said) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(said) >= 2
    assert said[0].startswith("score        1 of 2 shards, 1 running, 0 waiting")


def test_visible_gpus() -> None:
    listed = "0, GPU-aa, NVIDIA L4\n1, GPU-bb, NVIDIA H200\n"
    assert [gpu.name for gpu in visible_gpus(listed, {})] == ["NVIDIA L4", "NVIDIA H200"]
    assert [gpu.identity for gpu in visible_gpus(listed, {"CUDA_VISIBLE_DEVICES": "GPU-bb, 0"})] == ["GPU-bb", "0"]
    assert visible_gpus(listed, {"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_gpus("", {}) == ()


def test_gpus_as_clusters_name_them() -> None:
    """By the beginning of their ids, or as parts of one; after a name that there is not, CUDA sees none."""
    listed = "0, GPU-aa11, NVIDIA L4\n1, GPU-bb22, NVIDIA H200\n"

    def names(wanted: str) -> list[str]:
        return [gpu.name for gpu in visible_gpus(listed, {"CUDA_VISIBLE_DEVICES": wanted})]

    assert names("GPU-bb") == ["NVIDIA H200"]
    assert names("MIG-5c,MIG-5d") == ["part of an NVIDIA GPU"] * 2
    assert names("1,7,0") == ["NVIDIA H200"]
    assert names("-1") == names("NoDevFiles") == []
    assert visible_gpus("", {"CUDA_VISIBLE_DEVICES": "MIG-5c"}) == ()
