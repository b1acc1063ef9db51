"""Random bits from a counter, so that every network has a generator of its own at no cost.

A stream is a key (from seeds and a purpose) and a position. Word i of a stream is a fixed function of both, so:
many networks draw in one batched call, a network's numbers never depend on its company, CPU and GPU draw the same
bits, and a checkpoint of the generator is one integer.

The function is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def stream_key(*parts: int | str) -> int:
    """Hash seeds and a purpose, such as `(seed, "data")`, to a 64-bit key; a signed integer, as torch stores it."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def stream_keys(streams: Iterable[tuple[int | str, ...]], device: torch.device | None = None) -> Tensor:
    """The keys of several streams, key_P: int64 on the device that shall draw; of each stream, the parts of its key."""
    return torch.tensor([stream_key(*parts) for parts in streams], device=device)


def generator(*parts: int | str, device: torch.device | None = None) -> torch.Generator:
    """Make torch's own generator, seeded by the same kind of key: for initial weights and the like."""
    return torch.Generator(device or "cpu").manual_seed(stream_key(*parts) & 0x7FFF_FFFF_FFFF_FFFF)


def draw_words(key_P: Tensor, start: Tensor | int, num_words: int) -> Tensor:
    """Draw `num_words` words of 64 random bits from each of P streams.

    Args:
        key_P: int64 keys from `stream_key`, on the device that shall draw.
        start: position of the first word in every stream; a draw moves on by `num_words`.

    Returns:
        word_PW: int64; all 64 bits are random.
    """
    position_W = torch.arange(1, num_words + 1, device=key_P.device) + start
    z_PW = key_P[:, None] + position_W * _signed(_GOLDEN)
    z_PW = (z_PW ^ _shift_right(z_PW, 30)) * _signed(_MIX_1)
    z_PW = (z_PW ^ _shift_right(z_PW, 27)) * _signed(_MIX_2)
    return z_PW ^ _shift_right(z_PW, 31)


def draw_bytes(count: int, *parts: int | str) -> Tensor:
    """Draw bytes from the stream of a key: byte_N, uint8, on the CPU, the same on every machine and with every torch."""
    word_W = draw_words(stream_keys([parts]), 0, -(-count // 8))[0]
    return word_W.view(torch.uint8)[:count]


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically: clear the copied sign bits


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
