import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from idx_files import NAMES, write_dataset, write_idx

from trainables.mnist import data
from trainables.mnist.data import load_dataset

SPLITS = ("train", "validation", "test")
SHAPE = {"num_train": 60, "num_test": 20, "rows": 5, "cols": 4}


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "data", **SHAPE)


def rewrite(folder, part, values):
    """Replace a file as a download does: under its name, by another file."""
    (folder / NAMES[part]).unlink()
    write_idx(folder / NAMES[part], values)


def counts(images):
    return images.label_N.bincount().tolist()


def everything(images):
    return images.batch(torch.arange(len(images)))


def test_the_digits_are_split_by_class():
    digits = load_dataset()
    assert (digits.num_classes, digits.num_pixels, digits.white) == (10, 64, 16)
    of_class = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # in scikit-learn's description of them
    assert [sum(split) for split in zip(*(counts(getattr(digits, name)) for name in SPLITS), strict=True)] == of_class.tolist()
    test = (of_class * 0.25 + 0.5).int()
    assert counts(digits.test) == test.tolist()
    assert counts(digits.validation) == ((of_class - test) * 0.2 + 0.5).int().tolist()


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    value, label = map(torch.from_numpy, load_digits(return_X_y=True))
    for name in SPLITS:
        images = getattr(load_dataset(), name)
        assert torch.equal(images.label_N, label[images.row_N])
        assert torch.equal(everything(images) * 16, value[images.row_N].float())


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5])
def test_splits_are_disjoint_and_complete(fraction):
    digits = load_dataset(validation_fraction=fraction)
    row = torch.cat([getattr(digits, name).row_N for name in SPLITS])
    assert torch.equal(row.sort().values, torch.arange(1797))


def test_the_splits_never_change():
    """Networks were trained on them: a change of this sum makes every result before it incomparable."""
    digits = load_dataset()
    assert digits.fingerprint == "5c45daa346c5813c"
    rows = b"".join(getattr(digits, name).row_N.numpy().tobytes() for name in SPLITS)
    assert hashlib.sha256(rows).hexdigest()[:16] == "98c346ba726163e6"


def test_a_larger_validation_split_holds_the_smaller(folder):
    small, large = (load_dataset(str(folder), validation_fraction=fraction).validation for fraction in (0.2, 0.4))
    assert set(small.row_N.tolist()) < set(large.row_N.tolist())


def test_without_scikit_learn_the_digits_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    data._load_digits.cache_clear()
    with pytest.raises(ImportError, match=r"scikit-learn must be installed for its digits.*, but got .*; install"):
        load_dataset()


@pytest.mark.parametrize("gz", [False, True])
def test_the_test_files_are_the_test_split_and_the_training_files_the_others(tmp_path, gz):
    dataset = load_dataset(str(write_dataset(tmp_path, **SHAPE, gz=gz)))
    assert (dataset.num_classes, dataset.num_pixels, dataset.white) == (10, 20, 255)
    assert [counts(getattr(dataset, name)) for name in SPLITS] == [[5] * 10, [1] * 10, [2] * 10]
    assert torch.equal(dataset.test.row_N, torch.arange(20))
    row = torch.cat([dataset.train.row_N, dataset.validation.row_N])
    assert torch.equal(row.sort().values, torch.arange(60))


def test_gzipped_files_give_the_same_data_set(tmp_path):
    plain, gzipped = (load_dataset(str(write_dataset(tmp_path / str(gz), **SHAPE, gz=gz))) for gz in (False, True))
    assert plain.fingerprint == gzipped.fingerprint
    for name in SPLITS:
        assert torch.equal(everything(getattr(plain, name)), everything(getattr(gzipped, name)))


def test_a_batch_is_the_pixels_over_white(folder):
    pixel = torch.arange(400, dtype=torch.int32).remainder(256).byte().view(20, 5, 4)
    rewrite(folder, "test_images", pixel)
    test = load_dataset(str(folder)).test
    x_PBI = test.batch(torch.tensor([[3, 0, 3], [19, 1, 2]]))
    assert (x_PBI.shape, x_PBI.dtype) == ((2, 3, 20), torch.float32)
    assert x_PBI[1, 0].tolist() == [torch.tensor(value / 255).item() for value in pixel[19].flatten().tolist()]
    assert torch.equal(x_PBI[0, 0], x_PBI[0, 2])
    assert torch.equal(test.batch(torch.tensor([0]))[0], x_PBI[0, 1])
    assert (everything(test).min(), everything(test).max()) == (0, 1)


def test_images_and_labels_belong_together_in_every_split(folder):
    label = torch.arange(60).remainder(10).byte()
    rewrite(folder, "train_labels", label)
    rewrite(folder, "train_images", label[:, None, None].expand(60, 5, 4))
    dataset = load_dataset(str(folder))
    for images in (dataset.train, dataset.validation, dataset.train.of_classes([3, 9])):
        assert torch.equal((everything(images)[:, 7] * 255).round().long(), images.label_N)


def test_classes_are_selected_in_order_and_without_a_copy(folder):
    train = load_dataset(str(folder)).train
    some = train.of_classes({7, 2})
    assert counts(some) == [0, 0, 5, 0, 0, 0, 0, 5]
    assert some.row_N.tolist() == [row for row, label in zip(train.row_N, train.label_N, strict=True) if label in (2, 7)]
    assert some.pixel_FI is train.pixel_FI


def test_a_class_without_images_is_refused(folder):
    train = load_dataset(str(folder)).train
    with pytest.raises(ValueError, match=r"each class must have images, but got none of \[10, 12\]; name classes"):
        train.of_classes([12, 1, 10])
    with pytest.raises(ValueError, match="at least one class"):
        train.of_classes([])


def test_pixels_stay_in_the_mapped_file(folder):
    dataset = load_dataset(str(folder))
    assert dataset.train.pixel_FI is dataset.validation.pixel_FI
    maps = Path("/proc/self/maps").read_text().splitlines()
    for images, name in ((dataset.train, "train_images"), (dataset.test, "test_images")):
        ranges = [line.split()[0].split("-") for line in maps if NAMES[name] in line]
        assert any(int(low, 16) <= images.pixel_FI.data_ptr() < int(high, 16) for low, high in ranges)


def test_a_device_gets_shared_pixels_once(folder):
    dataset = load_dataset(str(folder))
    moved = dataset.to(torch.device("meta"))
    assert moved.train.pixel_FI is moved.validation.pixel_FI
    for images in (moved.train, moved.validation, moved.test):
        assert {tensor.device.type for tensor in (images.pixel_FI, images.row_N, images.label_N)} == {"meta"}
    assert dataset.to(torch.device("cpu")).train.pixel_FI is dataset.train.pixel_FI


@pytest.mark.gpu
def test_a_gpu_gathers_the_same_bits(folder):
    test = load_dataset(str(folder)).test
    on_gpu = load_dataset(str(folder)).to(torch.device("cuda")).test
    assert torch.equal(on_gpu.batch(torch.arange(20, device="cuda")).cpu(), everything(test))


def test_a_data_set_is_loaded_once_until_a_file_changes(folder):
    before = load_dataset(str(folder))
    assert load_dataset(f"{folder}/.") is before
    path = folder / NAMES["test_labels"]
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1], content[-2] = content[-2], content[-1]
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_dataset(str(folder)) is not before


def test_the_fingerprint_tells_the_pixels_the_labels_and_the_split(folder):
    path, fingerprints = str(folder), [load_dataset(str(folder)).fingerprint]
    fingerprints.append(load_dataset(path, validation_fraction=0.4).fingerprint)
    for part in ("test_images", "train_images", "test_labels"):
        content = bytearray((folder / NAMES[part]).read_bytes())
        content[-1] ^= 1
        (folder / NAMES[part]).unlink()
        (folder / NAMES[part]).write_bytes(content)
        fingerprints.append(load_dataset(path).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) >= 0 for fingerprint in fingerprints)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.51, float("nan")])
def test_a_validation_fraction_out_of_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"validation_fraction must be in \(0, 0.5\], but got"):
        load_dataset(validation_fraction=fraction)


def test_labels_that_are_not_as_many_as_images_are_refused(folder):
    rewrite(folder, "train_labels", torch.arange(59).remainder(10).byte())
    law = "train-labels-idx1-ubyte must hold one label for each of the 60 images of train-images-idx3-ubyte, but got 59 labels;"
    with pytest.raises(ValueError, match=law):
        load_dataset(str(folder))


def test_test_images_of_another_size_are_refused(folder):
    rewrite(folder, "test_images", torch.zeros(20, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte must hold images of 5 x 4 pixels .* but got 4 x 5;"):
        load_dataset(str(folder))


@pytest.mark.parametrize(
    ("part", "labels", "law"),
    [
        ("train_labels", [0] * 30 + [2] * 30, "train-labels.* each label from 0 to 9 at least 2 times, but got label 1 0"),
        ("train_labels", [*range(9)] * 6 + [9] + [0] * 5, "train-labels.* at least 2 times, but got label 9 1 times; count"),
        ("test_labels", [*range(9)] * 2 + [0, 0], "t10k-labels.* must hold each label .* at least 1 times, but got label 9 0"),
        ("test_labels", [*range(11)] + [0] * 9, "train-labels.* from 0 to 10 at least 2 times, but got label 10 0 times"),
    ],
)
def test_classes_that_a_split_would_lack_are_refused(folder, part, labels, law):
    rewrite(folder, part, torch.tensor(labels, dtype=torch.uint8))
    with pytest.raises(ValueError, match=law):
        load_dataset(str(folder))
