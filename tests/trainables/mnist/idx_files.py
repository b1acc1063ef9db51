"""Writes MNIST's files, small and learnable, for the tests beside this file and of what trains on them."""

import gzip
import struct

import torch

NAMES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def write_idx(path, values, *, gz=False):
    """Write uint8 values of any number of dimensions: three for images, one for labels."""
    header = struct.pack(f">I{values.dim()}I", 0x800 + values.dim(), *values.shape)
    content = header + values.contiguous().numpy().tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=1) if gz else content)


def write_dataset(folder, *, num_train, num_test, rows, cols, num_classes=10, seed=0, gz=False):
    """Write a data set of one pattern a class, moved by up to a pixel, with noise; returns the folder.

    Labels are as even as can be, in random order: with 2 * num_classes images each class has two.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_classes, 1, -(-rows // 3), -(-cols // 3), generator=generator).round()
    patterns = torch.nn.functional.interpolate(coarse, (rows, cols), mode="bilinear").squeeze(1)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in {"train": num_train, "test": num_test}.items():
        label_N = (torch.arange(count) % num_classes)[torch.randperm(count, generator=generator)]
        pixel_NRC = _drawn(patterns[label_N], generator)
        for kind, values in {"images": pixel_NRC, "labels": label_N.byte()}.items():
            write_idx(folder / (NAMES[f"{part}_{kind}"] + ".gz" * gz), values, gz=gz)
    return folder


def _drawn(pattern_NRC, generator):
    """Move each image by -1, 0 or 1 rows and columns, around the edge, add noise, and make bytes of it."""
    count, rows, cols = pattern_NRC.shape
    down_N, right_N = torch.randint(-1, 2, (2, count), generator=generator)
    row_NR = (torch.arange(rows) + down_N[:, None]) % rows
    col_NC = (torch.arange(cols) + right_N[:, None]) % cols
    moved = pattern_NRC[torch.arange(count)[:, None, None], row_NR[:, :, None], col_NC[:, None, :]]
    noisy = moved + 0.15 * torch.randn(moved.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round().byte()
