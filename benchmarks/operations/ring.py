"""Enqueue: normalise, cast or quantise, write at the ring pointer, store ids."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import MemoryBank

from ..case import Case, Inputs, Operation, Outputs, Run, Variant, Work, of
from ..ours import backend_variants


class Enqueue(Operation):
    """N keys into a bank of K rows, wrapping in the first call."""

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """Keys of any length, a bank of random rows, and a pointer that makes the ring wrap."""
        bank = MemoryBank(case.K, case.D, dtype=case.torch_dtype, device=device)
        filler = torch.randn(case.K, case.D, **of(generator)).to(device)
        bank.enqueue(filler, backend="torch")
        bank.ptr.fill_(case.K - case.N // 2)
        keys = (torch.randn(case.N, case.D, **of(generator)) * 3).to(device)
        ids = torch.arange(case.N, device=device)
        return {"bank": bank, "keys": keys.to(case.query_dtype), "ids": ids}

    def _slots(self, case: Case, device: torch.device) -> Tensor:
        return (case.K - case.N // 2 + torch.arange(case.N, device=device)) % case.K

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The unit keys in fp64: rounding and quantisation count as error, as eager's do."""
        return {"rows": F.normalize(inputs["keys"].double(), dim=1), "ids": inputs["ids"].double()}

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """Eager PyTorch on a copy."""
        scale = inputs["bank"].row_scale
        state = _State(
            inputs["bank"].rows.clone(),
            None if scale is None else scale.clone(),
            inputs["bank"].ids.clone(),
            case.K - case.N // 2,
        )
        _eager_enqueue(state, inputs["keys"], inputs["ids"])
        return self.finish(case, state.outputs())

    def finish(self, case: Case, outputs: Outputs) -> Outputs:
        """The written slots, scales applied."""
        slots = self._slots(case, outputs["rows"].device)
        rows = outputs["rows"][slots].double()
        if "row_scale" in outputs:
            rows = rows * outputs["row_scale"][slots].double().unsqueeze(1)
        return {"rows": rows, "ids": outputs["ids"][slots].double()}

    def work(self, case: Case) -> Work:
        """Keys read, rows written."""
        read = torch.empty(0, dtype=case.query_dtype).element_size()
        written = torch.empty(0, dtype=case.torch_dtype).element_size()
        moved = case.N * (case.D * (read + written) + 16)
        return Work("none: memory-bound", None, "keys read, rows and ids written", float(moved))

    def _ours(self, backend: str, case: Case, sets: list[Inputs]) -> Run:
        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]
            bank = i["bank"]
            bank.enqueue(i["keys"], i["ids"], backend=backend)
            outputs = {"rows": bank.rows, "ids": bank.ids}
            return outputs if bank.row_scale is None else outputs | {"row_scale": bank.row_scale}

        return run

    def variants(self, case: Case) -> list[Variant]:
        """Ours and the usual Python."""
        return [*backend_variants(self._ours), Variant("eager", "eager", _eager)]


class _State:
    """A ring in plain tensors."""

    def __init__(self, rows: Tensor, row_scale: Tensor | None, ids: Tensor, ptr: int) -> None:
        self.rows, self.row_scale, self.ids, self.ptr = rows, row_scale, ids, ptr

    def outputs(self) -> Outputs:
        found = {"rows": self.rows, "ids": self.ids}
        return found if self.row_scale is None else found | {"row_scale": self.row_scale}


@torch.no_grad()
def _eager_enqueue(state: _State, keys: Tensor, ids: Tensor) -> None:
    """MoCo's queue with the wrap it leaves out: two slices."""
    keys = F.normalize(keys, dim=1)
    scale = None
    if state.row_scale is not None:
        scale = keys.abs().amax(dim=1) / 127
        keys = (keys / scale.unsqueeze(1)).round()
    size, total = state.rows.shape[0], keys.shape[0]
    first = min(total, size - state.ptr)
    for source, target, count in ((0, state.ptr, first), (first, 0, total - first)):
        state.rows[target : target + count] = keys[source : source + count].to(state.rows.dtype)
        state.ids[target : target + count] = ids[source : source + count]
        if state.row_scale is not None and scale is not None:
            state.row_scale[target : target + count] = scale[source : source + count]
    state.ptr = (state.ptr + total) % size


def _eager(case: Case, sets: list[Inputs]) -> Run:
    states = []
    for i in sets:
        bank = i["bank"]
        scale = None if bank.row_scale is None else bank.row_scale.clone()
        states.append(_State(bank.rows.clone(), scale, bank.ids.clone(), case.K - case.N // 2))

    def run(turn: int) -> Outputs:
        i, state = sets[turn % len(sets)], states[turn % len(sets)]
        _eager_enqueue(state, i["keys"], i["ids"])
        return state.outputs()

    return run
