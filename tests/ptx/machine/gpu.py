"""A GPU for Python: tensors that say they are on one, and what ``torch.cuda`` says of it.

    python -m tests.ptx.machine --arch sm_90 --gpu -m benchmarks.run --smoke --device cuda

Memory is the CPU's and kernels run on the PTX machine. Host code that is only for a GPU runs as it
is written: events, streams, memory statistics, the choice of a backend by device, launches on a
current stream. Left out is what stands on the driver: graphs are not captured, work does not wait.
"""

import contextlib
import importlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import rnn

from tests.ptx.machine.driver import SHARED_MEMORY

_FACTORIES = (
    "arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones",
    "ones_like", "rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor",
    "zeros", "zeros_like",
)  # fmt: skip
#: What waits for the GPU, or copies from the host.
_WAITS = (
    "__bool__", "__float__", "__int__", "__index__", "cpu", "item", "nonzero", "numpy", "tolist",
)  # fmt: skip
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "to")
DEVICE = torch.device("cuda", 0)


def _is_gpu(value: object) -> bool:
    return isinstance(value, str | torch.device) and str(value).startswith("cuda")


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for which the GPU is the CPU."""

    def call(*arguments: Any, **options: Any) -> Any:
        if _is_gpu(options.get("device")):
            options["device"] = "cpu"
        return function(*("cpu" if _is_gpu(a) else a for a in arguments), **options)

    return call


def _product(mm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The matrix product, which has a dtype of its result on a GPU only."""

    def product(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, **options: Any):
        wide = (a, b) if out_dtype is None else (a.to(out_dtype), b.to(out_dtype))
        return mm(*wide, **options)

    return product


def _packed(
    data: Any, sizes: Any = None, order: Any = None, back: Any = None
) -> tuple[Any, Any, Any, Any]:
    """What a packed sequence is made of; torch also looks whether sizes are on the CPU."""
    back = rnn.invert_permutation(order) if back is None else back
    return (*data, order, back) if sizes is None else (data, sizes, order, back)


class Properties:
    """What ``get_device_properties`` returns."""

    name = "played GPU"
    total_memory = 8 << 30
    L2_cache_size = 1 << 16
    multi_processor_count = 4

    def __init__(self, architecture: str) -> None:
        number = int(architecture.removeprefix("sm_"))
        self.major, self.minor = number // 10, number % 10
        self.shared_memory_per_block_optin = SHARED_MEMORY[architecture]


class Stream:
    """Everything has happened when it is asked."""

    cuda_stream = 0
    device = DEVICE

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def synchronize(self) -> None:
        """Nothing is under way."""

    def wait_stream(self, other: "Stream") -> None:
        """Nothing is under way."""


class Event:
    """A point in time of the host."""

    def __init__(self, enable_timing: bool = False, **options: Any) -> None:
        self._timing, self._at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Now."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds."""
        if not (self._timing and later._timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        return (later._at - self._at) * 1e3


class _Generator(torch.Generator):
    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls, "cpu" if _is_gpu(device) else device)


class _Waits:
    """Refuses what makes the host wait, where ``set_sync_debug_mode`` asks for that."""

    def __init__(self) -> None:
        self.mode: object = 0

    def set(self, mode: object) -> None:
        self.mode = mode

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.mode in ("error", 2):
                raise RuntimeError(f"called a synchronizing CUDA operation ({name})")
            return function(*arguments, **options)

        return call


class _Statistics:
    """Bytes that torch's allocator would have: more at each look, since nothing counts them."""

    def __init__(self) -> None:
        self._bytes = itertools.count(0, 512)

    def allocated(self, device: object = None) -> int:
        return next(self._bytes)


def _nothing(*arguments: Any, **options: Any) -> None:
    return None


def _no_context(*arguments: Any, **options: Any) -> Any:
    return contextlib.nullcontext()


def _names(architecture: str, waits: _Waits) -> dict[str, Any]:
    """Of ``torch.cuda``."""
    properties, statistics = Properties(architecture), _Statistics()
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _nothing,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "memory_allocated": statistics.allocated,
        "max_memory_allocated": statistics.allocated,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": _nothing,
        "manual_seed_all": _nothing,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda device=None: Stream(),
        "get_sync_debug_mode": lambda: waits.mode,
        "set_sync_debug_mode": waits.set,
        "Event": Event,
        "Stream": Stream,
        "stream": _no_context,
        "device": _no_context,
    }


@contextlib.contextmanager
def played(architecture: str) -> Iterator[None]:
    """Every tensor is on a GPU of this architecture while it lasts.

    ``driver.install`` and ``cuda.install`` come before it: they bring what runs the kernels.
    """
    from sede_kernels.backends import order
    from sede_kernels.backends import triton as backend
    from sede_kernels.backends.cuda import _device_reason, _native
    from sede_kernels.backends.triton import launch

    # What the compiler knows of torch's functions, it must learn of the real ones.
    importlib.import_module("torch._dynamo.trace_rules").get_torch_obj_rule_map()
    looks = (_device_reason, launch._device_class, order._device_class)
    emulation = backend.emulated()
    backend.emulate(None)
    for look in looks:
        look.cache_clear()
    with contextlib.ExitStack() as stack:

        def patch(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        waits = _Waits()
        for name, value in _names(architecture, waits).items():
            patch(torch.cuda, name, value)
        for name in _WAITS:
            patch(Tensor, name, waits.watched(name, getattr(Tensor, name)))
        for name in _FACTORIES:
            function = _on_cpu(getattr(torch, name))
            copies = name in ("as_tensor", "tensor")
            patch(torch, name, waits.watched(name, function) if copies else function)
        for name in _METHODS:
            patch(Tensor, name, _on_cpu(getattr(Tensor, name)))
        patch(torch, "mm", _product(torch.mm))
        patch(rnn, "_packed_sequence_init_args", _packed)
        patch(torch, "Generator", _Generator)
        patch(torch.version, "cuda", "13.0")
        patch(Tensor, "device", property(lambda tensor: DEVICE))
        patch(Tensor, "is_cuda", property(lambda tensor: True))
        patch(Tensor, "cuda", lambda tensor, *arguments, **options: tensor)
        patch(Tensor, "pin_memory", lambda tensor, *arguments, **options: tensor)
        patch(_native, "emulating", lambda: False)
        try:
            yield
        finally:
            backend.emulate(emulation)
            for look in looks:
                look.cache_clear()
