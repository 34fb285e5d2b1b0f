"""A pytest plugin that puts csrc/cuda's operators in the place of the CPU kernels: the operators' own tests, with every
check of theirs, as a GPU will run them.

    python -m pytest -p tests.cuda_host.rehearsal tests/reidops
"""

import torch

import reidops  # noqa: F401  (registers what is replaced)
from tests.cuda_host import build

torch.ops.load_library(str(build.build("plain").library))
_library = torch.library.Library("reidops", "IMPL")
for _name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
    if _name.startswith("reidops_host::"):
        _operator = _name.removeprefix("reidops_host::")
        _library.impl(_operator, getattr(torch.ops.reidops_host, _operator), "CPU", allow_override=True)
