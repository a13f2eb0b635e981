"""GPUs that the installed Triton is too old for: the next backend serves and says why."""

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")
import sede_kernels
from sede_kernels import BackendUnavailableError
from sede_kernels.backends import registry
from sede_kernels.backends import triton as backend


@pytest.fixture
def machine(monkeypatch):
    """Plays a machine: (compute capability of every GPU, Triton's version)."""

    def play(capabilities, version):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        # A build of torch for GPUs would start the driver that is not here.
        monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_capability",
            lambda device: capabilities[device if isinstance(device, int) else device.index],
        )
        monkeypatch.setattr(backend, "triton_version", lambda: version)
        backend._outdated_everywhere.cache_clear()

    yield play
    backend._outdated_everywhere.cache_clear()


def on(device):
    with FakeTensorMode():
        return torch.empty(3, 16, device=device), torch.empty(9, 16, device=device)


@pytest.mark.parametrize("version", [(3, 6), (3, 7)])
def test_sm_100_needs_a_newer_triton(machine, monkeypatch, version):
    machine([(10, 0)], version)
    reason = sede_kernels.available_backends()["triton"]
    assert f"Triton {version[0]}.{version[1]} does not compile" in reason
    assert "10.0" in reason and "triton>=3.8" in reason
    monkeypatch.setattr(registry, "_warned_of", set())
    with pytest.warns(RuntimeWarning, match="does not compile"):
        served = registry.resolve("bank_lse", "auto", *on("cuda:0"))
    assert served.__module__ == "sede_kernels.backends.torch.bank_lse"
    with pytest.raises(BackendUnavailableError, match="does not compile"):
        registry.resolve("bank_lse", "triton", *on("cuda:0"))


@pytest.mark.parametrize(
    "capability,version",
    [((10, 0), (3, 8)), ((10, 3), (3, 9)), ((10, 0), (4, 0)), ((9, 0), (3, 6)), ((8, 0), (3, 6)),
     ((12, 0), (3, 6))],
)  # fmt: skip
def test_others_are_served(machine, capability, version):
    machine([capability], version)
    assert sede_kernels.available_backends()["triton"] is None
    assert backend.unsupported_reason("bank_lse", *on("cuda:0")) is None


def test_each_gpu_of_a_mixed_machine(machine):
    machine([(9, 0), (10, 0)], (3, 7))
    assert sede_kernels.available_backends()["triton"] is None
    assert backend.unsupported_reason("bank_lse", *on("cuda:0")) is None
    assert "does not compile" in backend.unsupported_reason("bank_lse", *on("cuda:1"))


def test_the_version_is_that_of_the_installed_triton():
    import triton

    assert backend.triton_version() == tuple(map(int, triton.__version__.split(".")[:2]))
