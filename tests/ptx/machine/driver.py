"""A driver of Triton's whose device is the PTX machine: real host code on CPU tensors.

``install("sm_90")`` makes it the active driver. ``kernel[grid](...)`` then specialises and compiles
as Triton would on such a GPU, up to the PTX, and the launch runs that in place on the tensors.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.ptx.machine import build
from tests.ptx.machine.buffers import encoded_map
from tests.ptx.machine.memory import Memory
from tests.ptx.machine.module import Fault, Module, Options

#: Architecture -> bytes of shared memory a block may use there.
SHARED_MEMORY = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448}
#: Kinds of faults that Triton's own code shows everywhere; docs/ptx.md says why they do no harm.
TOLERATED = frozenset({"replica-rounding", "init-fence"})


class FaultError(RuntimeError):
    """A launch did something wrong; the text has the kernel and its faults."""


@dataclass
class Statistics:
    """What has run so far; times in seconds."""

    launches: int = 0
    executed: int = 0
    lane_executed: int = 0
    run_s: float = 0.0
    compile_s: float = 0.0
    modules: dict[str, str] = field(default_factory=dict)  # digest -> kernel
    kernels: dict[str, str] = field(default_factory=dict)  # kernel -> Python module
    faults: list[tuple[str, Fault]] = field(default_factory=list)

    def summary(self, architecture: str) -> str:
        """One line."""
        speed = self.executed / max(self.run_s, 1e-9) / 1e6
        return (
            f"PTX machine {architecture}: {self.launches} launches of {len(self.modules)} compiled "
            f"kernels, {self.executed / 1e6:.1f} M warp instructions in {self.run_s:.1f} s "
            f"({speed:.1f} M/s), compiled in {self.compile_s:.1f} s"
        )


@dataclass
class State:
    """What a launch looks up. ``rewrite`` changes a PTX text before it is loaded."""

    architecture: str = "sm_90"
    strict: bool = True
    options: Options = field(default_factory=Options)
    rewrite: Callable[[str, str], str] | None = None
    statistics: Statistics = field(default_factory=Statistics)


state = State()
_modules: dict[str, Module] = {}


def module_of(name: str, text: str) -> Module:
    """The loaded module of a PTX text."""
    if state.rewrite is not None:
        text = state.rewrite(name, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest not in _modules:
        _modules[digest] = Module(text)
    state.statistics.modules[digest] = name
    return _modules[digest]


def loaded(digest: str) -> Module:
    """A module by the key that it has in ``Statistics.modules``."""
    return _modules[digest]


class Launcher:
    """What Triton calls to launch a compiled kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self._signature = dict(src.signature)
        self._metadata = metadata
        self._names = list(src.fn.arg_names)
        self._source = src.fn.__module__

    def __call__(  # the order is Triton's
        self, x: int, y: int, z: int, stream: Any, function: Any, packed: Any, launch_metadata: Any,
        enter_hook: Any, exit_hook: Any, *arguments: Any,
    ) -> None:  # fmt: skip
        """Run it on the machine."""
        name, text = function
        module = module_of(name, text)
        items = [
            (str(parameter), *item)
            for value, (parameter, kind) in zip(arguments, self._signature.items(), strict=True)
            for item in _flattened(value, kind)
        ]
        scratch = self._scratch(int(x) * int(y) * int(z))
        named = [(parameter, _tensor(value)) for parameter, value, _ in items]
        named += [("global scratch", tensor) for tensor in scratch]
        memory = Memory([(parameter, tensor) for parameter, tensor in named if tensor is not None])
        descriptors = iter(getattr(self._metadata, "tensordesc_meta", None) or [])
        values = [v for _, *item in items for v in _passed(*item, descriptors, memory)]
        values += [memory.address(tensor) for tensor in scratch]
        grid = (int(x), int(y), int(z))
        started = time.perf_counter()
        faults = module.launch(
            name,
            grid,
            (32 * self._metadata.num_warps,),
            values,
            shared=self._metadata.shared,
            regions=memory.buffers,
            options=state.options,
        )
        memory.write_back()
        state.statistics.kernels[name] = self._source
        _account(name, module, faults, time.perf_counter() - started)

    def _scratch(self, blocks: int) -> list[Tensor]:
        """The scratch memory of the grid, which Triton passes after the arguments, if any."""
        size = getattr(self._metadata, "global_scratch_size", 0) * blocks
        if not size:
            return []
        memory = torch.zeros(size + 128, dtype=torch.uint8)
        return [memory[-memory.data_ptr() % 128 :][:size]]


def _account(name: str, module: Module, faults: list[Fault], seconds: float) -> None:
    statistics = state.statistics
    statistics.launches += 1
    statistics.executed += module.executed
    statistics.lane_executed += module.lane_executed
    statistics.run_s += seconds
    statistics.faults += [(name, fault) for fault in faults]
    bad = [fault for fault in faults if fault.kind not in TOLERATED]
    if bad and state.strict:
        listed = "\n".join(map(str, bad[:12]))
        raise FaultError(f"{name} on {state.architecture}: {len(bad)} faults\n{listed}")


def _flattened(value: Any, kind: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(kind, tuple):
        for part, inner in zip(value, kind, strict=True):
            yield from _flattened(part, inner)
    elif kind != "constexpr":
        yield value, kind


def _tensor(value: Any) -> Tensor | None:
    """The tensor whose memory an argument is of."""
    return value if isinstance(value, Tensor) else getattr(value, "base", None)


def _passed(value: Any, kind: str, descriptors: Iterator[Any], memory: Memory) -> list[Any]:
    """The parameters of the PTX entry that one argument becomes."""
    if kind.startswith("tensordesc"):
        return _descriptor(value, next(descriptors, None), memory)
    if isinstance(value, Tensor):
        return [memory.address(value)]
    if kind in ("fp16", "bf16"):
        dtype = torch.float16 if kind == "fp16" else torch.bfloat16
        return [int(torch.tensor(value, dtype=dtype).view(torch.int16)) & 0xFFFF]
    if kind in ("fp32", "f32", "fp64"):
        return [float(value)]
    return [int(value)]


def _descriptor(descriptor: Any, metadata: Any, memory: Memory) -> list[Any]:
    shape, strides = list(descriptor.shape), list(descriptor.strides)
    if metadata is None:
        from triton.backends.driver import decompose_descriptor  # no copy engine: pointers

        base, *rest = decompose_descriptor(descriptor)
        return [memory.address(base), *map(int, rest)]
    element = descriptor.base.element_size()
    encoded = encoded_map(
        memory.address(descriptor.base),
        shape[::-1],
        [stride * element for stride in strides[::-1][1:]],
        list(metadata["block_size"])[::-1],
        element,
        metadata["swizzle"],
    )
    return [encoded, *shape, *strides]


class _Utilities:
    """The functions of the CUDA driver that Triton asks for."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """Module, function, registers, spills, threads a block may have."""
        function = (name, kernel.decode())
        return function, function, 0, 0, 1024

    def unload_module(self, module: Any) -> None:
        """Modules stay."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Of the class of the architecture."""
        return {"max_shared_mem": SHARED_MEMORY[state.architecture], "multiprocessor_count": 4}


class Driver:
    """An active driver of Triton's, for the architecture of ``state``."""

    def __init__(self) -> None:
        self.utils = _Utilities()
        self.launcher_cls = Launcher

    def get_current_target(self) -> Any:
        """The GPU that kernels are compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", int(state.architecture.removeprefix("sm_")), 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def set_current_device(self, device: int) -> None:
        """There is one."""

    def get_current_stream(self, device: int) -> int:
        """Launches are not asynchronous."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cpu")


def _stop_at_ptx() -> None:
    """The assembler's output is not needed: the binary of a kernel is its PTX."""
    from triton.backends.nvidia.compiler import CUDABackend

    complete = CUDABackend.add_stages

    def add_stages(self: Any, stages: dict[str, Any], *arguments: Any) -> None:
        complete(self, stages, *arguments)
        stages["cubin"] = lambda text, metadata: text.encode()

    CUDABackend.add_stages = add_stages


def _time_compilation() -> None:
    import triton

    complete = triton.compiler.compile

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return complete(*arguments, **options)
        finally:
            state.statistics.compile_s += time.perf_counter() - started

    triton.compiler.compile = timed


def install(architecture: str, cores: int = 4) -> None:
    """Run Triton kernels on CPU tensors as on a GPU of this architecture, from here on.

    Args:
        architecture: a key of ``SHARED_MEMORY``.
        cores: multiprocessors that the host code sees.

    Raises:
        ValueError: for another architecture.
    """
    if architecture not in SHARED_MEMORY:
        raise ValueError(f"architecture must be one of {sorted(SHARED_MEMORY)}, not {architecture}")
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored on the PTX machine.")
    # Entries without machine code must not get into Triton's own cache.
    cache = os.environ.get("SEDE_PTX_TRITON_CACHE") or str(build.cache_folder() / "triton")
    os.environ["TRITON_CACHE_DIR"] = cache
    import triton

    from sede_kernels.backends import triton as backend

    if not isinstance(triton.runtime.driver._active, Driver):
        _stop_at_ptx()
        _time_compilation()
    state.architecture = architecture
    triton.runtime.driver.set_active(Driver())
    played = {"sm_86": "sm_89"}.get(architecture, architecture)
    backend.emulate(backend.Emulation(played, cores))
