"""The search model as CUDA graphs: one launch per pass instead of hundreds, one recording per batch size.

For small networks a GPU otherwise waits for Python most of the time. A recording counts only if it gives the
logits of the model it was made from; where one cannot be made (too little memory, operations that wait for the
host) the model runs as it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]

TOLERANCE = 1e-2
"""Of the largest logit, between a recording and the model, in 16 bits or TF32 as the search may be."""


class Graphs:
    """`run`, recorded per batch size, with and without a gradient. The next call overwrites what one returned."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._recorded: dict[tuple[int, bool], Run] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared: no two recordings are in use at a time

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        key = (len(x_BCHW), x_BCHW.requires_grad)
        if key not in self._recorded:
            self._recorded[key] = self._record(x_BCHW)
        return self._recorded[key](x_BCHW)

    def _record(self, x_BCHW: Tensor) -> Run:
        sample_BCHW = x_BCHW.detach().clone(memory_format=torch.channels_last)
        sample_BCHW.requires_grad_(x_BCHW.requires_grad)
        with torch.no_grad():
            expected_BK = self._run(sample_BCHW.detach())
        try:
            recorded: Run = torch.cuda.make_graphed_callables(self._run, (sample_BCHW,), pool=self._pool)
            found_BK = recorded(sample_BCHW).detach()
        except RuntimeError:  # out of memory, too: then passes one by one need less
            return self._run
        close = (found_BK - expected_BK).abs().max() <= TOLERANCE * expected_BK.abs().max()
        return recorded if bool(close) else self._run
