"""One rank's place among several processes that train one experiment together (`trainables.parallel`)."""

import dataclasses
import os
import socket
import sys
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Who a process is among its like. Travels as JSON.

    Attributes:
        rank: 0 to size - 1.
        size: ranks in all, >= 1.
        kind: "cpu", or "cuda": of several ranks, rank r has cuda:r of the devices that this machine shows.
        folder: on this machine, there for as long as rank 0 is.
        timeout_s: how long one exchange may take.
    """

    rank: int
    size: int
    kind: Literal["cpu", "cuda"]
    folder: str
    timeout_s: float

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        has_its_own = self.kind == "cuda" and self.size > 1
        return torch.device(self.kind, self.rank) if has_its_own else torch.device(self.kind)

    def num_threads(self, num_cpus: float) -> int:
        """Threads of this rank, where all ranks share so many CPUs."""
        return max(1, int(num_cpus / self.size))

    def join(self) -> None:
        """Wait for the other ranks: from here on, `torch.distributed` reaches them, on CPU and on CUDA tensors."""
        is_cuda = self.kind == "cuda"
        if is_cuda:
            torch.cuda.set_device(self.device)
        _keep_gloo_at_home()
        hook = sys.excepthook
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=distributed.FileStore(f"{self.folder}/store", self.size),  # type: ignore[attr-defined]  # not in its __all__
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout_s),
            device_id=self.device if is_cuda else None,
        )
        sys.excepthook = hook  # torch's own would stay when the group is gone


def _keep_gloo_at_home() -> None:
    """Have gloo talk inside this machine; by default it asks what address the machine's name has, if any."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
