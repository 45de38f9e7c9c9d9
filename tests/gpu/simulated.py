"""A pretended GPU, for tests on machines without one: CPU tensors that say they are on `cuda:0` and behave so.

    with simulated_gpu() as gpu:
        model.to("cuda")
        ...
        gpu.syncs  # how often the host waited

What goes wrong on a GPU and not on a CPU goes wrong here: a tensor of the CPU that meets one of the GPU (the rules are
PyTorch's: a scalar may, an index may, a copy does), `.numpy()` of the GPU's memory, kernels that only CPUs have, memory
of the host that is read before its copy has arrived or changed before it has left, and in the capture of a CUDA graph
whatever waits or is not on the GPU. A captured graph is replayed operation by operation on the tensors it was captured
with. `torch.cuda` says what it would on an H200, so the product takes the branches it takes there.

Not shown: rounding, speed, memory, races between streams (all work is in one order), and whether kernels compile.

How: `SimulatedTensor` wraps a plain tensor. To PyTorch's C++ it lies on `lazy:0`, a device no build computes on and
autograd needs no driver for; to Python it says `cuda:0`. One mode turns the device's name from one into the other, the
other runs every operation on the plain tensors.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "NVIDIA H200"
CUDA, INSIDE, CPU = torch.device("cuda", 0), torch.device("lazy", 0), torch.device("cpu")
aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten._unsafe_index.Tensor,
)  # fmt: skip
WAITING = {
    "_local_scalar_dense", "item", "equal", "nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique",
    "_unique2", "bincount", "repeat_interleave.Tensor", "is_nonzero",
}  # fmt: skip
"""Operations whose result, or its size, the host needs at once."""

KERNELS: dict[Any, Callable[..., Any]] = {
    aten.histc.default: lambda x, *args: aten.histc.default(x.float(), *args).to(x.dtype),
    aten.addmm.dtype_out: lambda c, a, b, dtype, *, out, **scales: torch.addmm(
        c, a.to(dtype), b.to(dtype), out=out, **scales
    ),
}
"""What GPUs have and CPUs have not."""


class SimulatedTensor(torch.Tensor):
    """A tensor of the GPU. `plain` holds its values; views of the one are views of the other."""

    plain: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, plain: Tensor) -> SimulatedTensor:
        with torch.inference_mode(False):  # views of parameters must not be inference tensors, even where they are made
            made: SimulatedTensor = torch.Tensor._make_wrapper_subclass(
                cls, plain.shape, strides=plain.stride(), storage_offset=plain.storage_offset(), dtype=plain.dtype,
                device=INSIDE, requires_grad=False,
            )  # fmt: skip
        made.plain = plain
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin a tensor of the GPU: only dense CPU tensors can be pinned")

    def __repr__(self, **_: Any) -> str:
        return f"cuda:0 {self.plain!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, kwargs or {})


class SimulatedGpu:
    """Runs operations, and knows what the host must wait for."""

    def __init__(self) -> None:
        self.syncs: list[str] = []
        """Operations the host waited in, in order, and the lines that asked for them."""
        self.operations = 0
        """Operations that were asked for, one by one: what launching costs."""
        self._arriving: list[tuple[Tensor, Tensor]] = []
        self._leaving: list[tuple[Tensor, Tensor]] = []
        self._pinned: dict[int, Tensor] = {}
        self._capture: Graph | None = None

    # ------------------------------------------------------------------------------------------- operations

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation on plain tensors, its results on the device it computes on."""
        own = [x for x in tree_iter((args, kwargs)) if isinstance(x, SimulatedTensor)]
        asked = next((x for x in (*args, kwargs.get("device")) if isinstance(x, torch.device)), None)
        if not own and (asked is None or asked.type not in ("cuda", INSIDE.type)):
            if func.namespace == "c10d":
                raise RuntimeError("No backend type associated with device type cpu")
            if kwargs.pop("pin_memory", False):
                return self.pin(func(*args, **kwargs))
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with _Operations():  # where autograd is off, such operations come whole
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if "for_cpu" in name or "mkldnn" in name:
            raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend")
        if func not in COPIES:
            _must_be_together(func, args, kwargs)
        self.operations += 1
        to_host = (
            asked == CPU
            if func is aten._to_copy.default
            else func is aten.copy_.default and not isinstance(args[0], SimulatedTensor)
        )
        early = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
        if to_host and func is aten.copy_.default and not self._is_pinned(args[0]):
            early = False  # into memory of the host that can be swapped out
        if {name, str(func).removeprefix("aten.")} & WAITING or _by_mask(func, args) or (to_host and not early):
            self._wait(name)
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        plain_kwargs |= {"device": CPU} if asked is not None else {}
        plain_kwargs.pop("pin_memory", None)
        if self._capture is not None:
            self._capture.before(func, args, kwargs, plain_args, plain_kwargs)
        kernel = KERNELS.get(func, func)
        out = kernel(*plain_args, **plain_kwargs)
        if self._capture is not None:
            self._capture.add(kernel, plain_args, plain_kwargs, out)
        if to_host:
            host = args[0] if func is aten.copy_.default else out
            if early:
                self._arriving.append((host, host.clone()))
                host.fill_(_poison(host.dtype))
            return host
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            if early and not isinstance(source, SimulatedTensor) and self._is_pinned(source):
                self._leaving.append((source, source.clone()))
        known = {id(x.plain): x for x in own}
        for x in own:
            assert x.shape == x.plain.shape, f"{func} changes a shape in place: not simulated"

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else SimulatedTensor(x)

        return tree_map(wrapped, out)

    # ----------------------------------------------------------------------------------------------- waiting

    def pin(self, tensor: Tensor) -> Tensor:
        """The tensor, known to lie in memory that copies need not wait for."""
        self._pinned[_address(tensor)] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._pinned

    def _wait(self, name: str) -> None:
        if self._capture is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")
        self.syncs.append(f"{name}: {_caller()}")
        self.complete()

    def asked(self) -> list[tuple[Tensor, Tensor]]:
        """Copies to the host that have not arrived."""
        return list(self._arriving)

    def complete(self, copies: list[tuple[Tensor, Tensor]] | None = None) -> None:
        """Let copies arrive, by default all; what leaves must not have been changed meanwhile."""
        done = [id(pair) for pair in (self._arriving if copies is None else copies)]
        for host, values in (pair for pair in self._arriving if id(pair) in done):
            host.copy_(values)
        self._arriving = [pair for pair in self._arriving if id(pair) not in done]
        leaving, self._leaving = self._leaving, []
        for source, values in leaving:
            if not torch.equal(source.nan_to_num(), values.nan_to_num()):
                raise AssertionError("pinned memory was written to before its copy to the GPU was done")


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []

    def record(self, *_: Any) -> None:
        self._before = _current().asked()

    def synchronize(self) -> None:
        _current().complete(self._before)

    def query(self) -> bool:
        return True

    def wait(self, *_: Any) -> None:
        """On a stream: nothing, for all work is in one order."""

    def elapsed_time(self, _: Event) -> float:
        return 1.0


class Stream:
    """`torch.cuda.Stream`: all streams are one here."""

    device, cuda_stream = CUDA, 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        _synchronize()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return _current()._capture is not None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Graph:
    """`torch.cuda.CUDAGraph`: the operations of its capture, with the very tensors they were captured with."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._steps: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        """Operations, what they were given, and what they made; None for what lies in what they were given."""
        self._before: list[tuple[Tensor, Tensor]] = []

    def capture_begin(self, *_: Any, **__: Any) -> None:
        assert _current()._capture is None
        self._steps, _current()._capture = [], self

    def before(self, func: Any, args: Any, kwargs: Any, plain_args: Any, plain_kwargs: Any) -> None:
        """What an operation is about to overwrite is kept: a capture computes nothing."""
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor) and not isinstance(x, SimulatedTensor) and (x.dim() or func in COPIES):
                raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing (a copy for {func})")
        for n, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                x = plain_args[n] if n < len(plain_args) else plain_kwargs.get(argument.name)
                if isinstance(x, Tensor):
                    self._before.append((x, x.clone()))

    def add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = set(map(_address, _tensors((args, kwargs))))
        self._steps.append((func, args, kwargs, [None if _address(x) in given else x for x in _tensors(out)]))

    def add_kernel(self, launch: Any, args: Any) -> None:
        """A launch, of which nobody knows what it writes."""
        self._before += [(x, x.clone()) for x in _tensors(args)]
        self._steps.append((launch, args, {}, []))

    def capture_end(self) -> None:
        _current()._capture = None
        for *_, outs in self._steps:
            for out in filter(torch.is_tensor, outs):
                out.fill_(_poison(out.dtype))
        for tensor, values in reversed(self._before):
            tensor.copy_(values)
        self._before = []

    def replay(self) -> None:
        for func, args, kwargs, outs in self._steps:
            for out, new in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                if out is not None:
                    out.copy_(new)

    def reset(self) -> None:
        self._steps = []

    def pool(self) -> Any:
        return (0, 0)


class Capture:
    """`torch.cuda.graph`."""

    def __init__(self, cuda_graph: Graph, *_: Any, **__: Any) -> None:
        self._graph = cuda_graph

    def __enter__(self) -> None:
        self._graph.capture_begin()

    def __exit__(self, *_: Any) -> None:
        self._graph.capture_end()


# ------------------------------------------------------------------------------------------------------- modes


class _Names(TorchFunctionMode):
    """`cuda` becomes the device inside; tensors made of Python's numbers are made on the CPU and copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.sparse_coo_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(_inside(device))
        if func is torch.Tensor.new_tensor and isinstance(args[0], SimulatedTensor):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, "device": CUDA} | kwargs)
        if func is torch.Tensor.cuda:
            return args[0].to(INSIDE)
        if func is torch.Tensor.pin_memory and not isinstance(args[0], SimulatedTensor):
            return _current().pin(args[0].clone())
        if func is torch.Tensor.is_pinned:
            return _current()._is_pinned(args[0])
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], SimulatedTensor):
            args = args[0], _without_lists(args[1]), *args[2:]
        if func is torch.Tensor.to:
            args = tuple(map(_inside, args))
        if "device" in kwargs:
            kwargs["device"] = _inside(kwargs["device"])
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Every operation, those that make tensors out of nothing included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, dict(kwargs or {}))


_running: list[SimulatedGpu] = []


def _current() -> SimulatedGpu:
    return _running[-1]


def _inside(device: Any) -> Any:
    if isinstance(device, torch.device):
        return INSIDE if device.type == "cuda" else device
    return INSIDE if isinstance(device, str) and device.startswith("cuda") else device


def _without_lists(index: Any) -> Any:
    """Lists among indices become tensors of the CPU, as in PyTorch, which copies them then."""
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _plain(x: Any) -> Any:
    if isinstance(x, SimulatedTensor):
        return x.plain
    return CPU if isinstance(x, torch.device) else x


def _must_be_together(func: Any, args: Any, kwargs: Any) -> None:
    """As PyTorch checks: no tensor of the CPU beside one of the GPU, but for scalars and indices."""
    if func in INDEXING:
        if not isinstance(args[0], SimulatedTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        args = [args[0], *args[2:]]
    for x in tree_iter((args, kwargs)):
        if isinstance(x, Tensor) and not isinstance(x, SimulatedTensor):
            scalar = x.dim() == 0 and (torch.Tag.pointwise in func.tags or func in INDEXING)
            if not scalar:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"({func})"
                )


def _by_mask(func: Any, args: Any) -> bool:
    return func in INDEXING and any(
        i is not None and (i.dtype in (torch.bool, torch.uint8) or not isinstance(i, SimulatedTensor)) for i in args[1]
    )


def _poison(dtype: torch.dtype) -> Any:
    """What memory holds that nothing was written to yet."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _caller() -> str:
    """The innermost line that is neither PyTorch's nor of this file."""
    frames = (f for f, _ in traceback.walk_stack(None) if f.f_code.co_filename != __file__)
    frame = next((f for f in frames if "/torch/" not in f.f_code.co_filename), None)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"


def _synchronize(*_: Any) -> None:
    _current()._wait("synchronize")


# --------------------------------------------------------------------------------------------------- torch.cuda


def _torch_cuda() -> dict[str, Any]:
    properties = SimpleNamespace(
        name=NAME, major=9, minor=0, total_memory=141 << 30, multi_processor_count=132, L2_cache_size=50 << 20,
        warp_size=32, gcnArchName="",
    )  # fmt: skip
    numbers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (140 << 30, 141 << 30),
        "is_current_stream_capturing": lambda: _current()._capture is not None,
        "is_initialized": lambda: True,
        "graph_pool_handle": lambda: (0, 0),
        "device": lambda *_: nullcontext(),
        "current_stream": lambda *_: Stream(),
        "default_stream": lambda *_: Stream(),
        "stream": lambda stream: stream or nullcontext(),
        "synchronize": _synchronize,
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": Capture,
    }
    quiet = ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "manual_seed", "manual_seed_all", "_lazy_init")
    amounts = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    return numbers | {name: lambda *_, **__: None for name in quiet} | {name: lambda *_, **__: 0 for name in amounts}


def _torch_accelerator() -> dict[str, Any]:
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda *_, **__: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "current_stream": lambda *_: Stream(),
        "synchronize": _synchronize,
    }


def _triton() -> AbstractContextManager[Any]:
    """Kernels in Triton's interpreter (TRITON_INTERPRET=1) read and write the plain tensors."""
    if find_spec("triton") is None:
        return nullcontext()
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def on_plain(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Tensor) and not isinstance(x, SimulatedTensor) for x in args):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        gpu, plain = _current(), tuple(map(_plain, args))
        gpu.operations += 1
        if gpu._capture is not None:
            gpu._capture.add_kernel(partial(launch, executor, **kwargs), plain)
        return launch(executor, *plain, **kwargs)

    return patch.object(GridExecutor, "__call__", on_plain)


def _init_process_group(backend: str, **options: Any) -> None:
    """NCCL: gloo on the plain tensors, but no tensor of the CPU is taken."""
    assert backend == "nccl", f"{backend} does not know the GPU"
    _START_GROUP("gloo", **options)


_START_GROUP = dist.init_process_group


@contextmanager
def simulated_gpu() -> Iterator[SimulatedGpu]:
    """Within, there is a GPU."""
    gpu, module = SimulatedGpu(), torch.__future__
    before = module.get_swap_module_params_on_conversion()
    module.set_swap_module_params_on_conversion(True)  # tied weights stay one when a module is moved
    _running.append(gpu)
    try:
        with (
            patch.multiple(torch.cuda, **_torch_cuda()),
            patch.multiple(torch.accelerator, **_torch_accelerator()),
            patch.object(torch.version, "cuda", "12.9"),
            patch.object(torch._C, "_get_accelerator", lambda *_: torch.device("cuda")),
            patch.object(dist, "init_process_group", _init_process_group),
            patch.object(dist.distributed_c10d, "_get_object_coll_device", lambda *_: "cuda"),
            _triton(),
            _Names(),
            _Operations(),
        ):
            yield gpu
    finally:
        _running.pop()
        module.set_swap_module_params_on_conversion(before)
