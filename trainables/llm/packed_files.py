"""Files among the tensors that trials share: each as its bytes, under a name that no parameter has."""

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

FILES = "files/"


def as_bytes_tensor(data: bytes) -> Tensor:
    """Bytes as a tensor of uint8."""
    return torch.from_numpy(numpy.frombuffer(bytearray(data), dtype=numpy.uint8))


def pack_files(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Files as tensors, by names that no parameter has."""
    return {f"{FILES}{name}": as_bytes_tensor(data) for name, data in files.items()}


def unpack_files(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files among tensors, by their names."""
    packed = {name: tensor for name, tensor in tensors.items() if name.startswith(FILES)}
    return {name.removeprefix(FILES): tensor.numpy().tobytes() for name, tensor in packed.items()}
