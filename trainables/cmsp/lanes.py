"""How a batch is worked off: which networks' products run as one, and in which chunks of samples.

On the CPU, no product is a batch of one, which takes another matrix kernel: two halves of its samples keep a lonely network
company. Chunks have one length and the same edges for any number of networks, and their gradients are summed in one order.
On other devices there is one chunk, all samples of all networks.

Axes: P networks, L lanes of a batched product, B samples, C samples of a chunk.
"""

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from trainables.cmsp.networks import Shape, split_padded

_CHUNK_NUMBERS = 2**17  # of one activation: half of a core's cache holds it
_MIN_CHUNK_SAMPLES = 256  # fewer, and the calls cost more than the work
_NUM_LANES = 4  # of a batched product, at least 2: with many more the products of one no longer run side by side,
_GROUP_NUMBERS = 2**17  # unless they are small: so many numbers of one activation may lie in all of its lanes

Layers = list[tuple[Tensor, Tensor]]
"""(weight, bias) of every linear layer, in padded sizes, with an axis of lanes in front."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Lanes:
    """Networks whose products run as one: `size` of them from `first` on, or the two halves of the only one's batch.

    Attributes:
        layers: views of their parameters.
        gradients: views of where the first and the second half of a batch add to the gradient; the same for halves.
    """

    first: int
    size: int
    halves: bool
    layers: Layers
    gradients: tuple[Layers, Layers]


def form_lanes(shape: Shape, parameter_PF: Tensor, half_gradients: Layers, num_samples: int) -> list[Lanes]:
    """Divide a population into groups of networks: of a few, or of many where calls cost more than the work.

    Args:
        half_gradients: with an axis of two halves before that of the networks.
        num_samples: of a batch.
    """
    num_networks = len(parameter_PF)
    on_cpu = parameter_PF.device.type == "cpu"
    if on_cpu and num_networks == 1:
        both = [(weight[:, 0], bias[:, 0]) for weight, bias in half_gradients]
        layers = split_padded(shape, parameter_PF.expand(2, -1))
        return [Lanes(first=0, size=1, halves=True, layers=layers, gradients=(both, both))]
    groups = []
    width = max(shape.padded.widths)
    num_lanes = max(_NUM_LANES, _GROUP_NUMBERS // (width * _chunk_length(num_samples, width)))
    num_groups = max(1, num_networks // num_lanes) if on_cpu else 1
    for group in range(num_groups):
        first, stop = (num_networks * edge // num_groups for edge in (group, group + 1))
        one, other = ([(weight[half, first:stop], bias[half, first:stop]) for weight, bias in half_gradients] for half in (0, 1))
        layers = split_padded(shape, parameter_PF[first:stop])
        groups.append(Lanes(first=first, size=stop - first, halves=False, layers=layers, gradients=(one, other)))
    return groups


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive samples of every lane.

    Attributes:
        starts: first sample, of each half where lanes are halves.
        half: which of the two gradients it adds to.
        is_first: nothing has been added there yet.
        surplus: how many samples at the end belong to the next chunk, for each of `starts`: 0 or 1.
    """

    lanes: Lanes
    starts: tuple[int, ...]
    length: int
    half: int
    is_first: bool
    surplus: tuple[int, ...]

    def take(self, batch_PB: Tensor) -> Tensor:
        """View the chunk's part of a batch, with any further axes."""
        start, first = self.starts[0], self.lanes.first
        if self.lanes.halves:
            stride_B = batch_PB.stride(1)
            stride = ((self.starts[1] - start) * stride_B, *batch_PB.stride()[1:])
            size = (2, self.length, *batch_PB.shape[2:])
            return batch_PB.as_strided(size, stride, batch_PB.storage_offset() + start * stride_B)
        return batch_PB[first : first + self.lanes.size, start : start + self.length]

    def put(self, batch_PB: Tensor, part_LC: Tensor) -> None:
        """Write the chunk's part of a batch."""
        first = self.lanes.first
        for lanes, start, extra in zip(self._places, self.starts, self.surplus, strict=True):
            length = self.length - extra
            batch_PB[first : first + self.lanes.size, start : start + length] = part_LC[lanes, :length]

    def drop_surplus(self, error_L1C: Tensor) -> None:
        """Let samples that the next chunk has count here for nothing."""
        for lanes, extra in zip(self._places, self.surplus, strict=True):
            if extra:
                error_L1C[lanes, :, -extra:] = 0

    @property
    def _places(self) -> tuple[slice, ...]:
        """The lanes of each of `starts`."""
        return (slice(0, 1), slice(1, 2)) if self.lanes.halves else (slice(None),)


def divide_samples(lanes: Lanes, num_samples: int, *, width: int) -> Iterator[Chunk]:
    """Divide a batch in chunks that stay in the cache.

    Args:
        width: of the widest layer.
    """
    if lanes.layers[0][0].device.type != "cpu":
        yield Chunk(lanes=lanes, starts=(0,), length=num_samples, half=0, is_first=True, surplus=(0,))
        return
    num_chunks, length = _num_chunks(num_samples, width), _chunk_length(num_samples, width)
    edges = [num_samples * index // num_chunks for index in range(num_chunks + 1)]
    surplus = [start + length - stop for start, stop in pairwise(edges)]
    for place in range(0, num_chunks, 2):
        pair, is_first = slice(place, place + 2), place == 0
        if lanes.halves:
            starts, extras = tuple(edges[pair]), tuple(surplus[pair])
            yield Chunk(lanes=lanes, starts=starts, length=length, half=0, is_first=is_first, surplus=extras)
            continue
        for half, (start, extra) in enumerate(zip(edges[pair], surplus[pair], strict=True)):
            yield Chunk(lanes=lanes, starts=(start,), length=length, half=half, is_first=is_first, surplus=(extra,))


def _num_chunks(num_samples: int, width: int) -> int:
    return 2 * math.ceil(num_samples / (2 * max(_MIN_CHUNK_SAMPLES, _CHUNK_NUMBERS // width)))


def _chunk_length(num_samples: int, width: int) -> int:
    return math.ceil(num_samples / _num_chunks(num_samples, width))
