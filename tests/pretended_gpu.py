"""A device "cuda:0" with real numbers, for machines without one: its tensors wrap some of the CPU.

Tensors of two devices that meet are an error, waits of the host are counted, and CUDA graphs are
recorded operation by operation: a replay repeats them on the same tensors, with the same numbers.
What it cannot show: CUDA's kernels and waits inside them, its allocator, speed.

It rests on these interfaces of torch, seen in 2.13: `Tensor._make_subclass` with a device for its
backend's keys, `torch.utils._python_dispatch`, `torch.utils._pytree`, operators' schemas,
`torch.__future__.set_overwrite_module_params_on_conversion`.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CPU, META, GPU = torch.device("cpu"), torch.device("meta"), torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# What the host cannot go on without: a value, or a size that depends on values.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal"}


def addmm_into(
    x: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor
) -> Tensor:
    return torch.addmm(x, left.to(dtype), right.to(dtype), out=out)


# Operators that only CUDA has, computed otherwise.
ONLY_CUDA: dict[Any, Callable[..., Any]] = {aten.addmm.dtype_out: addmm_into}


class OnGPU(Tensor):
    """A tensor of the pretended GPU; its numbers are in `numbers`."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "OnGPU":
        shape = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=META)
        new = Tensor._make_subclass(  # pyright: ignore
            cls, shape, False, dispatch_device=True, device_for_backend_keys=GPU
        )
        new.numbers = real
        return new

    @property
    def device(self) -> torch.device:  # pyright: ignore
        return GPU

    @property
    def is_cuda(self) -> bool:  # pyright: ignore
        return True

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Gpu.now.run(func, args, kwargs or {})


def real_of(x: Any) -> Any:
    return x.numbers if isinstance(x, OnGPU) else x


class Gpu(TorchDispatchMode):
    """The pretended GPU while it is there: what it was asked to do, by the name of the operator."""

    now: "Gpu"

    def __init__(self) -> None:
        super().__init__()
        self.waits = Counter[str]()
        self.graph: Graph | None = None
        self.random = Random()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator on the tensors inside; its results are where it would have put them."""
        if func is torch.ops.prim.device.default:
            return META
        if func is aten._fused_sdp_choice.default:
            return 0
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = {id(x.numbers): x for x in tensors if isinstance(x, OnGPU)}
        asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        self._check(func, tensors, ours, asked)
        if asked:
            kwargs = kwargs | {"device": CPU}
        kwargs = {
            name: x for name, x in kwargs.items() if name not in ("pin_memory", "non_blocking")
        }
        on_gpu = asked.type != "cpu" if asked else bool(ours)
        results = self._compute(func, *pytree.tree_map(real_of, (args, kwargs)), on_gpu)
        if func is aten.copy_.default:
            return args[0]
        if asked and results is real_of(args[0] if args else None):
            results = results.clone()  # to another device, where it is another tensor

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor) or not on_gpu:
                return x
            return ours[id(x)] if id(x) in ours else OnGPU(x)

        return pytree.tree_map(wrapped, results)

    def _check(self, func: Any, tensors: list[Tensor], ours: Any, asked: Any) -> None:
        """Raise where tensors of two devices meet; count what the host waits for."""
        name = func._schema.name.removeprefix("aten::")
        others = [x for x in tensors if not isinstance(x, OnGPU) and x.dim()]
        if ours and others and func not in COPIES:
            raise RuntimeError(f"{name}: tensors of the CPU and of the GPU meet: {others}")
        reads = name in READS or (name == "index" and tensors[1].dtype == torch.bool)
        to_host = func is aten._to_copy.default and asked == CPU
        to_device = func is aten._to_copy.default and asked == GPU and not ours
        if (ours and (reads or to_host)) or to_device:
            self.waits["to the device" if to_device else "to the host"] += 1
            if self.graph:
                raise RuntimeError(f"CUDA error: {name} is not permitted when stream is capturing")

    def _compute(self, func: Any, args: Any, kwargs: Any, on_gpu: bool) -> Any:
        if on_gpu and torch.Tag.nondeterministic_seeded in func.tags:
            self.random.draw()
        if self.graph and on_gpu:
            self.graph.keep_what_is_written(func._schema.arguments, args, kwargs)
            return self.graph.record(ONLY_CUDA.get(func, func), args, kwargs)
        return ONLY_CUDA.get(func, func)(*args, **kwargs)


class Graph:
    """As `torch.cuda.CUDAGraph`: operations with the tensors and numbers that they had."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def recording(self) -> Generator[None]:
        """Record what the GPU is asked to do, and leave everything as it was."""
        Gpu.now.graph = self
        Gpu.now.random.recorded = True
        try:
            yield
            Gpu.now.random.recorded = False  # on an H200 it stays so where a recording fails
        finally:
            Gpu.now.graph = None
            for whole, before in self._before.values():
                whole.copy_(before)

    def keep_what_is_written(self, parameters: Any, args: Any, kwargs: Any) -> None:
        given = dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
        for x in pytree.tree_leaves([given.get(p.name) for p in parameters if p.is_write]):
            whole = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
            self._before.setdefault(whole.data_ptr(), (whole, whole.clone()))

    def record(self, compute: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        results = compute(*args, **kwargs)
        self._calls.append((compute, args, kwargs, results))
        return results

    def replay(self) -> None:
        with _disable_current_modes():
            for compute, args, kwargs, results in self._calls:
                repeated = pytree.tree_leaves(compute(*args, **kwargs))
                for old, new in zip(pytree.tree_leaves(results), repeated, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Random:
    """As a generator of CUDA's: whether it believes that its draws are recorded."""

    recorded = False

    def draw(self) -> None:
        if self.recorded and not Gpu.now.graph:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def clone_state(self) -> "Random":
        return Random()

    def graphsafe_set_state(self, other: "Random") -> None:
        self.recorded = other.recorded


class Stream:
    made = 0

    def __init__(self) -> None:
        Stream.made += 1

    def wait_stream(self, stream: "Stream") -> None: ...


class Event:
    """As `torch.cuda.Event`; each next one is a millisecond later."""

    recorded = 0

    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self) -> None:
        Event.recorded += 1
        self.at = Event.recorded

    def elapsed_time(self, other: "Event") -> float:
        return float(other.at - self.at)


def _linear(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As autocast casts it: its C++ takes no tensor of ours for one of CUDA's."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            x, weight = x.to(dtype), weight.to(dtype)
        return plain(x, weight, bias)

    return linear


def _load(plain: Callable[..., Any]) -> Callable[..., Any]:
    def load(path: Any, map_location: Any = None, **options: Any) -> Any:
        with _disable_current_modes():
            state = plain(path, map_location="cpu", **options)
        on_gpu = torch.device(map_location).type == "cuda"
        return pytree.tree_map(lambda x: OnGPU(x) if on_gpu and isinstance(x, Tensor) else x, state)

    return load


def _tensor(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """From Python's numbers: torch's C++ asks CUDA itself for the memory."""

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = plain(data, **options)
        return made.to(device) if device else made

    return tensor


def _answering(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A pretended T4 for the time of a test."""
    if torch.backends.cuda.is_built():
        pytest.skip("this torch is built with CUDA, whose own code would run")
    Gpu.now = Gpu()

    def tolist(self: Tensor) -> Any:
        if isinstance(self, OnGPU):
            Gpu.now.waits["to the host"] += 1
        return plain_tolist(real_of(self))

    def synchronize() -> None:
        Gpu.now.waits["synchronize"] += 1

    plain_tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", tolist)
    monkeypatch.setattr(torch, "load", _load(torch.load))
    monkeypatch.setattr(torch, "tensor", _tensor(torch.tensor))
    monkeypatch.setattr(F, "linear", _linear(F.linear))
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True,
        "device_count": 1, "current_device": 0, "get_device_capability": (7, 5),
        "get_device_properties": SimpleNamespace(total_memory=15_828_320_256),
        "max_memory_allocated": 123, "current_stream": Stream(), "stream": nullcontext(),
        "_lazy_init": None, "manual_seed_all": None, "reset_peak_memory_stats": None,
    }  # fmt: skip
    stands_for: dict[str, Any] = {name: _answering(value) for name, value in answers.items()}
    stands_for |= {"Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": Graph.recording}
    stands_for |= {"synchronize": synchronize, "default_generators": (Gpu.now.random,)}
    for name, stand_in in stands_for.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Gpu.now:
            yield Gpu.now
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
