"""Make many updates: one call each on the CPU, one captured CUDA graph replayed on a GPU.

On a GPU the kernels of one update of small networks take less time than Python needs to launch them. So the whole update,
data generation included, is recorded once and then replayed without Python in between; what changes from one update to the
next is a counter in GPU memory.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_NUM_EAGER = 3  # updates before the capture, in which libraries choose their kernels and take their memory


class UpdateLoop:
    """Calls `update(index)` for consecutive indices.

    Args:
        update: one update, written with in-place operations on tensors that stay where they are; `index` is an int64
            scalar tensor on the device. Whoever replaces such a tensor makes a new loop.
    """

    def __init__(self, update: Callable[[Tensor], None], *, device: torch.device) -> None:
        self._update = update
        self._index = torch.zeros((), dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0 if device.type == "cpu" else _NUM_EAGER

    def run(self, start: int, stop: int) -> None:
        """Make updates number `start` to `stop - 1`."""
        self._index.fill_(start)
        for _ in range(start, stop):
            self._advance()

    def _advance(self) -> None:
        if self._index.device.type == "cpu":
            self._once()
        elif self._graph is not None:
            self._graph.replay()
        elif self._num_eager:
            self._num_eager -= 1
            self._on_side_stream()
        else:
            self._capture()
            self._advance()

    def _once(self) -> None:
        self._update(self._index)
        self._index.add_(1)

    def _on_side_stream(self) -> None:
        """Capturing asks that the same work has run on another stream than the default one."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _tf32():
            self._once()
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self) -> None:
        """Record one update without making it."""
        graph = torch.cuda.CUDAGraph()
        with _tf32(), torch.cuda.graph(graph):
            self._once()
        self._graph = graph


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """Let matrix products of training round their inputs to TF32, where the paper's were float32; what measures does not."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
