import gzip
from pathlib import Path

import pytest
import torch
from idx_files import NAMES, write_dataset, write_idx

from trainables.mnist.idx import find_files, read_images, read_labels

IMAGES = torch.arange(24, dtype=torch.uint8).view(2, 3, 4)
LABELS = torch.tensor([7, 255], dtype=torch.uint8)


@pytest.fixture(params=[False, True], ids=["plain", "gzipped"])
def gz(request):
    return request.param


@pytest.fixture
def images(tmp_path, gz):
    write_idx(tmp_path / "images", IMAGES, gz=gz)
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path, gz):
    write_idx(tmp_path / "labels", LABELS, gz=gz)
    return tmp_path / "labels"


def rewrite(path, gz, change):
    """Change what is in a file, inside gzip's wrapping if it has one."""
    content = path.read_bytes()
    path.write_bytes(gzip.compress(change(gzip.decompress(content))) if gz else change(content))


def test_what_is_written_is_read(images, labels):
    assert torch.equal(read_images(images), IMAGES)
    assert torch.equal(read_labels(labels), LABELS)


def test_the_format_is_the_one_that_is_published(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes.fromhex("00000803 00000002 00000001 00000003 0a0b0c 0d0e0f"))
    assert read_images(path).tolist() == [[[10, 11, 12]], [[13, 14, 15]]]
    path.write_bytes(bytes.fromhex("00000801 00000003 050009"))
    assert read_labels(path).tolist() == [5, 0, 9]


def test_a_file_that_is_not_gzipped_is_mapped_and_never_written_to(tmp_path):
    write_idx(tmp_path / "images", IMAGES)
    pixel = read_images(tmp_path / "images")
    assert str(tmp_path / "images") in Path("/proc/self/maps").read_text()
    pixel.zero_()
    assert torch.equal(read_images(tmp_path / "images"), IMAGES)


@pytest.mark.parametrize("size", [17, 39])
def test_a_truncated_file_is_refused(images, gz, size):
    rewrite(images, gz, lambda content: content[:size])
    with pytest.raises(ValueError, match=rf"images must hold 40 bytes, as its header says, but got {size} bytes; download"):
        read_images(images)


@pytest.mark.parametrize("size", [4, 15])
def test_a_truncated_header_is_refused(images, gz, size):
    rewrite(images, gz, lambda content: content[:size])
    with pytest.raises(ValueError, match=rf"images must hold a header of 16 bytes, but got {size} bytes"):
        read_images(images)


def test_a_file_that_is_too_long_is_refused(labels, gz):
    rewrite(labels, gz, lambda content: content + b"\0")
    with pytest.raises(ValueError, match="labels must hold 10 bytes, as its header says, but got 11 bytes"):
        read_labels(labels)


def test_an_empty_file_is_refused(labels, gz):
    rewrite(labels, gz, lambda content: b"")
    with pytest.raises(ValueError, match=r"labels must hold labels .* but got a file that starts with 0x\(nothing\)"):
        read_labels(labels)


def test_a_dimension_of_nothing_is_refused(tmp_path):
    write_idx(tmp_path / "images", torch.zeros(3, 0, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="images must hold something in every dimension, but got 3 x 0 x 4"):
        read_images(tmp_path / "images")


def test_swapped_files_are_told(images, labels):
    with pytest.raises(ValueError, match=r"labels must hold images .* but got a file that holds labels, not images; .*swapped"):
        read_images(labels)
    with pytest.raises(ValueError, match=r"images must hold labels .* but got a file that holds images, not labels; .*swapped"):
        read_labels(images)


def test_any_other_file_is_refused(images, gz):
    rewrite(images, gz, lambda content: b"<html>")
    with pytest.raises(ValueError, match=r"must hold images and start with 0x00000803, but got a file .* 0x3c68746d"):
        read_images(images)


@pytest.mark.parametrize("damage", [slice(0, -9), slice(0, 4)])
def test_an_incomplete_gzip_is_refused(tmp_path, damage):
    path = tmp_path / "images"
    write_idx(path, IMAGES, gz=True)
    path.write_bytes(path.read_bytes()[damage])
    with pytest.raises(ValueError, match=r"images must be whole to be unzipped, but got .*; download"):
        read_images(path)


@pytest.mark.parametrize("place", [12, -8, -1])
def test_a_damaged_gzip_is_refused(tmp_path, place):
    path = tmp_path / "images"
    write_idx(path, IMAGES, gz=True)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images must be whole to be unzipped, but got .*; download"):
        read_images(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_files_are_found_under_the_names_that_mirrors_use(tmp_path, mark, suffix):
    names = [name.replace("-idx", f"{mark}idx") + suffix for name in NAMES.values()]
    for name in names:
        (tmp_path / name).touch()
    assert find_files(tmp_path) == tuple(tmp_path / name for name in names)


def test_what_can_be_mapped_is_preferred(tmp_path):
    for gz in (True, False):
        write_dataset(tmp_path, num_train=20, num_test=10, rows=3, cols=3, gz=gz)
    assert [path.name for path in find_files(tmp_path)] == list(NAMES.values())


def test_missing_files_are_named(tmp_path):
    (tmp_path / NAMES["train_images"]).touch()
    (tmp_path / NAMES["test_labels"]).touch()
    missing = "no train-labels-idx1-ubyte and no t10k-images-idx3-ubyte in "
    with pytest.raises(ValueError, match=f"data_dir must hold MNIST's four files, .* but got {missing}{tmp_path}; put"):
        find_files(tmp_path)


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match=f"data_dir must be a folder with MNIST's four files, but got {tmp_path}/nowhere;"):
        find_files(tmp_path / "nowhere")
