"""A machine that executes compiled PTX on the CPU and reports what it does wrong.

::

    from tests.ptx.machine import In, Module, Out

    module = Module(text)  # raises on an instruction it does not know, with its line
    out = Out(128, "float32")
    faults = module.launch("kernel", grid=(4,), block=(128,), arguments=[In(array), out, 5])
    out.get()

docs/ptx.md says what it proves and what it does not. Triton kernels run on it through
``driver.install``; ``python -m tests.ptx.machine --arch sm_90 SCRIPT`` runs a script that way.
"""

from tests.ptx.machine.buffers import Array, Buffer, In, InOut, Out, TensorMap
from tests.ptx.machine.module import Fault, Module, Options

__all__ = ["Array", "Buffer", "Fault", "In", "InOut", "Module", "Options", "Out", "TensorMap"]
