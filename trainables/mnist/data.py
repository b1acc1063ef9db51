"""Labelled images for training, validation and testing: MNIST's files, or the small digits of scikit-learn.

Nothing is copied to split them: all splits of a file share its pixels and hold which rows are theirs.

Axes: F images of a file, N images of a split, R rows and C columns of an image or I pixels, P networks, B samples, Q samples of
all networks.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from trainables.laws import require
from trainables.mnist.idx import find_files, read_images, read_labels
from trainables.randomness import draw_words, stream_keys

DIGITS_TEST_FRACTION = 0.25
"""Of scikit-learn's digits, which have no test images of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Images:
    """Some images of a file, with their labels."""

    pixel_FI: Tensor
    """uint8, all images of the file; splits share it."""
    row_N: Tensor
    """int64, where in the file the images are."""
    label_N: Tensor
    """int64, of the images, not of the file."""
    white: int
    """The pixel value that counts as 1.0."""

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def num_pixels(self) -> int:
        """I, of an image."""
        return self.pixel_FI.shape[1]

    def batch(self, place: Tensor) -> Tensor:
        """Gather the images at these places; their labels are `label_N[place]`.

        Args:
            place: int64 of any shape, such as place_B or place_PB, each in 0..N-1, on the images' device.

        Returns:
            x: float32 in [0, 1], with axis I after those of `place`; the same bits on any device.

        Source: arXiv:2505.15811, mnist/ (torchvision's ToTensor: pixel / 255, no normalisation).
        """
        # index_select gathers rows of bytes many times faster than indexing by a tensor does
        pixel_QI = self.pixel_FI.index_select(0, self.row_N[place].flatten())
        x = pixel_QI.float().view(*place.shape, self.num_pixels)
        return x.div_(x.new_full((), self.white))  # by a tensor: by a number, CUDA multiplies with a rounded 1 / white

    def of_classes(self, classes: Collection[int]) -> Self:
        """The images with these labels, in the order they have here.

        Raises:
            ValueError: if there is no class, or a class without images.
        """
        require(len(classes) > 0, "there must be at least one class", "none", "name the classes to select")
        missing = sorted(set(classes) - set(self.label_N.tolist()))
        require(not missing, "each class must have images", f"none of {missing}", "name classes of the data set")
        chosen_N = torch.isin(self.label_N, torch.tensor(list(classes), device=self.label_N.device))
        return dataclasses.replace(self, row_N=self.row_N[chosen_N], label_N=self.label_N[chosen_N])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Three disjoint splits.

    Source: arXiv:2505.15811, Fig 4 (mnist/). Differs: the authors choose when to stop on the test images; here there are
    validation images to choose on.
    """

    train: Images
    validation: Images
    test: Images
    num_classes: int
    """Labels are 0..num_classes-1; each has an image in every split."""
    fingerprint: str
    """16 hex digits of all pixels, labels and splits: what a network that was trained on them depends on."""

    @property
    def num_pixels(self) -> int:
        """I, of an image."""
        return self.train.num_pixels

    @property
    def white(self) -> int:
        """The pixel value that counts as 1.0: 255 of MNIST, 16 of scikit-learn's digits."""
        return self.train.white

    def to(self, device: torch.device) -> Self:
        """Copy to a device, what splits share only once; nothing is copied that is there already."""
        splits = (self.train, self.validation, self.test)
        pixels = {key: pixel_FI.to(device) for key, pixel_FI in _shared_pixels(splits).items()}
        train, validation, test = (
            dataclasses.replace(
                images,
                pixel_FI=pixels[id(images.pixel_FI)],
                row_N=images.row_N.to(device),
                label_N=images.label_N.to(device),
            )
            for images in splits
        )
        return dataclasses.replace(self, train=train, validation=validation, test=test)


def load_dataset(data_dir: str | None = None, *, validation_fraction: float = 0.2) -> Dataset:
    """Load a data set once in a process, and again when its files have changed.

    Args:
        data_dir: folder with MNIST's files (`trainables.mnist.idx.find_files`), whose t10k are the test images; None for
            scikit-learn's digits (1797 images of 8 x 8), of which a quarter of each class are the test images.
        validation_fraction: of each class, of the images that are not for testing; in (0, 0.5]. The same images in every
            process, and a larger fraction only adds to them.

    Raises:
        ValueError: if an argument is out of its range, or files are missing, damaged or do not fit together.
        ImportError: if the digits are asked for and scikit-learn is not installed.
    """
    law = "validation_fraction must be in (0, 0.5]"
    require(0 < validation_fraction <= 0.5, law, validation_fraction, "use 0.2 for one training image in five")
    if data_dir is None:
        return _load_digits(validation_fraction)
    paths = find_files(Path(data_dir).resolve())
    return _load_files(paths, tuple(_version(path) for path in paths), validation_fraction)


@functools.lru_cache(maxsize=4)
def _load_files(paths: tuple[Path, Path, Path, Path], versions: tuple[object, ...], validation_fraction: float) -> Dataset:
    train_pixel_FRC, train_label_F = _read_pair(paths[0], paths[1])
    test_pixel_FRC, test_label_F = _read_pair(paths[2], paths[3])
    _require_one_size(paths[0], train_pixel_FRC, paths[2], test_pixel_FRC)
    num_classes = int(max(train_label_F.max(), test_label_F.max())) + 1
    _require_classes(paths[1], train_label_F, num_classes, least=2)
    _require_classes(paths[3], test_label_F, num_classes, least=1)
    train_pixel_FI, test_pixel_FI = train_pixel_FRC.flatten(1), test_pixel_FRC.flatten(1)
    validation_N, train_N = _split(train_label_F, torch.arange(len(train_label_F)), validation_fraction, "validation")
    train, validation = (_images(train_pixel_FI, train_label_F, row_N, white=255) for row_N in (train_N, validation_N))
    test = _images(test_pixel_FI, test_label_F, torch.arange(len(test_label_F)), white=255)
    return _dataset(train, validation, test)


@functools.lru_cache(maxsize=4)
def _load_digits(validation_fraction: float) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        law = "scikit-learn must be installed for its digits, the images without a data_dir"
        raise ImportError(f"{law}, but got {error}; install scikit-learn, or give a data_dir with MNIST's files") from error
    value_FI, class_F = load_digits(return_X_y=True)
    pixel_FI, label_F = torch.from_numpy(value_FI).to(torch.uint8), torch.from_numpy(class_F).long()
    test_N, other_N = _split(label_F, torch.arange(len(label_F)), DIGITS_TEST_FRACTION, "test")
    validation_N, train_N = _split(label_F, other_N, validation_fraction, "validation")
    train, validation, test = (_images(pixel_FI, label_F, row_N, white=16) for row_N in (train_N, validation_N, test_N))
    return _dataset(train, validation, test)


def _version(path: Path) -> tuple[int, int, int]:
    """What tells that a file was changed or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_pair(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """A file of images and the labels of its images."""
    pixel_FRC, label_F = read_images(images), read_labels(labels).long()
    law = f"{labels} must hold one label for each of the {len(pixel_FRC)} images of {images.name}"
    require(len(label_F) == len(pixel_FRC), law, f"{len(label_F)} labels", "use two files that belong together")
    return pixel_FRC, label_F


def _require_one_size(train: Path, train_pixel_FRC: Tensor, test: Path, test_pixel_FRC: Tensor) -> None:
    wanted, got = (" x ".join(map(str, pixel_FRC.shape[1:])) for pixel_FRC in (train_pixel_FRC, test_pixel_FRC))
    require(got == wanted, f"{test} must hold images of {wanted} pixels as {train.name} does", got, "use files of one data set")


def _require_classes(labels: Path, label_F: Tensor, num_classes: int, *, least: int) -> None:
    count = label_F.bincount(minlength=num_classes)
    fewest = int(count.argmin())
    law = f"{labels} must hold each label from 0 to {num_classes - 1} at least {least} times"
    require(int(count[fewest]) >= least, law, f"label {fewest} {int(count[fewest])} times", "count classes from 0, without gaps")


def _split(label_F: Tensor, row_N: Tensor, fraction: float, purpose: str) -> tuple[Tensor, Tensor]:
    """Take a fraction of the rows of each class, at least one, by lot; what is taken and what is left, ascending."""
    # Not torch.randperm: another torch may draw others with it, and the splits shall never change.
    word_F = draw_words(stream_keys([("mnist", "split", purpose)]), 0, len(label_F))[0]
    drawn_N = row_N[word_F[row_N].argsort()]
    taken = []
    for label in sorted(set(label_F.tolist())):
        of_class = drawn_N[label_F[drawn_N] == label]
        taken.append(of_class[: max(1, int(len(of_class) * fraction + 0.5))])
    taken_N = torch.cat(taken).sort().values
    return taken_N, row_N[~torch.isin(row_N, taken_N)]


def _images(pixel_FI: Tensor, label_F: Tensor, row_N: Tensor, *, white: int) -> Images:
    return Images(pixel_FI=pixel_FI, row_N=row_N, label_N=label_F[row_N], white=white)


def _dataset(train: Images, validation: Images, test: Images) -> Dataset:
    splits = (train, validation, test)
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        num_classes=int(train.label_N.max()) + 1,
        fingerprint=_fingerprint(splits),
    )


def _shared_pixels(splits: Sequence[Images]) -> dict[int, Tensor]:
    """The files' pixels, each once, by identity."""
    return {id(images.pixel_FI): images.pixel_FI for images in splits}


def _fingerprint(splits: Sequence[Images]) -> str:
    digest = hashlib.sha256()
    tensors = [*_shared_pixels(splits).values(), *(tensor for images in splits for tensor in (images.row_N, images.label_N))]
    for tensor in tensors:
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.numpy().data)
    digest.update(repr([images.white for images in splits]).encode())
    return digest.hexdigest()[:16]
