"""What is shared: which things are the same, and how they lie in a storage and come back."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from shared_things import CPU, files, path_of, recipe, unmade, value_of

from trainables.shared import Recipe, Shared
from trainables.storage import Folder, StorageError


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_all_kinds_of_tensors_come_back_and_on_the_cpu_and_for_the_maker_too(place, request):
    folder, base, devices = request.getfixturevalue(place), torch.arange(6.0).reshape(2, 3), []
    made = {
        "whole": base,
        "tied": base,
        "transposed": base.T,
        "expanded": base[:1].expand(4, 3),
        "trained": torch.nn.Parameter(base.bfloat16()),
        "scalar": torch.tensor(True),
        "empty": torch.zeros(0, 3, dtype=torch.int64),
    }

    def make(device):
        devices.append(device)
        return made

    for recipe_ in (recipe(make=make), unmade()):
        tensors = Shared(folder, settle_s=0).get(recipe_, CPU)
        assert tensors.keys() == made.keys()
        for name, tensor in tensors.items():
            assert tensor is not made[name]
            assert (tensor.dtype, tensor.device, tensor.requires_grad) == (made[name].dtype, CPU, False)
            assert torch.equal(tensor, made[name])
    assert devices == [CPU]


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_other_ingredients_or_another_name_make_another_thing(place, request):
    shared = Shared(request.getfixturevalue(place), settle_s=0)
    recipes = [recipe(1), recipe(2, seed=2), recipe(3, name="base_model"), recipe(4, name=recipe().key)]
    for _ in range(2):
        assert [value_of(shared.get(each, CPU)) for each in recipes] == [1, 2, 3, 4]
    assert len({each.key for each in recipes}) == 4
    assert len(files(request.getfixturevalue(place))) == 4


def test_the_order_of_ingredients_is_none():
    a, b = ({"a": [1, 2], "b": {"c": None, "d": "x"}}, {"b": {"d": "x", "c": None}, "a": (1, 2)})
    assert len({Recipe(name="x", ingredients=ingredients, make=dict).key for ingredients in (a, b)}) == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "ä", "a\n", "x" * 101])
def test_a_name_that_is_no_part_of_a_file_name_is_refused(name):
    with pytest.raises(ValueError, match="name must be 1 to 100 letters, digits, '-' and '_', but got"):
        recipe(name=name)


@pytest.mark.parametrize(
    ("value", "got"),
    [(float("nan"), "not JSON compliant"), (torch.zeros(1), "Tensor is not JSON"), ({1: 2}, "key that is no text"), ({1}, "set")],
)
def test_ingredients_that_are_no_json_are_refused(value, got):
    with pytest.raises(ValueError, match=f"ingredients of x must be JSON values, but .*{got}.*; use text, numbers"):
        Recipe(name="x", ingredients={"deep": [{"er": value}]}, make=dict)


def test_the_longest_name_fits_in_a_file_name(disk):
    assert value_of(Shared(disk).get(recipe(name="x" * 100), CPU)) == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: b""])
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_damaged_file_is_told_of_and_made_again(place, damage, request, caplog):
    folder = request.getfixturevalue(place)
    shared = Shared(folder, settle_s=0)
    shared.get(recipe(1), CPU)
    (name,) = files(folder)
    folder.write(name, damage(folder.read(name)))
    assert value_of(shared.get(recipe(2), CPU)) == value_of(shared.get(unmade(), CPU)) == 2
    assert caplog.messages == [f"{folder.address}/{name} is damaged; making it again"]
    assert len(files(folder)) == 1


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_file_of_another_recipe_is_not_used(place, request, caplog):
    folder = request.getfixturevalue(place)
    shared, other = Shared(folder, settle_s=0), recipe(2, seed=2)
    shared.get(other, CPU)
    for name in [*files(folder), *files(folder, ".claim")]:
        folder.write(name.replace(other.key, recipe().key), folder.read(name))
        folder.delete(name)
    assert value_of(shared.get(recipe(1), CPU)) == 1
    assert "is damaged; making it again" in caplog.text


def test_a_file_that_is_no_safetensors_is_not_used_though_its_digest_is_right(disk):
    disk.write(f"{recipe().key}-e3b0c44298fc1c14.safetensors", b"")
    assert value_of(Shared(disk).get(recipe(1), CPU)) == 1
    assert len(files(disk)) == 1


def test_other_files_in_the_folder_are_left_alone(disk):
    names = ["notes.txt", ".notes.partial", f"{recipe().key}.safetensors", f"x{recipe().key}-{'0' * 16}.safetensors"]
    for name in names:
        disk.write(name, b"x")
    Shared(disk).get(recipe(1), CPU)
    assert {path.name for path in Path(disk.address).iterdir()} > set(names)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_failing_maker_leaves_nothing_and_the_next_tries_itself(place, request):
    folder = request.getfixturevalue(place)

    def fail(_):
        raise ZeroDivisionError("at step 3")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="at step 3"):
            Shared(folder, settle_s=0).get(recipe(make=fail), CPU)
        assert files(folder) == files(folder, ".claim") == []
    assert value_of(Shared(folder, settle_s=0).get(recipe(2), CPU)) == 2


@pytest.mark.parametrize(
    ("place", "failing"),
    [
        ("disk", "trainables.storage.Folder.write"),
        ("disk", "trainables.storage.Folder.names"),
        ("disk", "trainables.shared.safe_open"),
        ("bucket", "trainables.storage.Folder.write"),
        ("bucket", "trainables.storage.Folder.modified_ns"),
        ("bucket", "trainables.storage.Folder.read"),
    ],
)
def test_a_failing_storage_is_told_from_a_failing_maker(place, failing, request, monkeypatch):
    def fail(*_, **__):
        raise PermissionError("not yours")

    folder = request.getfixturevalue(place)
    monkeypatch.setattr(failing, fail)
    with pytest.raises(StorageError, match=r"the storage must keep teacher-.*not yours.*; mend it and resume the study"):
        Shared(folder, settle_s=0).get(recipe(), CPU)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_storage_that_gives_back_other_bytes_is_told_of(place, request, monkeypatch):
    write = Folder.write
    monkeypatch.setattr(Folder, "write", lambda folder, name, data: write(folder, name, data[:-1] + b"!"))
    with pytest.raises(StorageError, match="the storage must give back what it was given, but got a damaged teacher-"):
        Shared(request.getfixturevalue(place), settle_s=0).get(recipe(), CPU)


def is_mapped(tensor, name):
    """Whether a tensor's numbers lie where the system has mapped a file."""
    lines = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    ranges = [[int(end, 16) for end in line.split("-")] for line in lines]
    return any(low <= tensor.data_ptr() < high for low, high in ranges)


def test_what_lies_on_a_disk_is_mapped_for_the_maker_too_so_that_a_machine_has_it_in_memory_once(disk, bucket):
    for recipe_ in (recipe(), unmade()):
        tensors = Shared(disk).get(recipe_, CPU)
        assert is_mapped(tensors["weight_NM"], files(disk)[0])
    assert not is_mapped(Shared(bucket, settle_s=0).get(recipe(), CPU)["weight_NM"], "teacher-")


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_who_writes_to_what_is_shared_has_a_copy_of_its_own(place, request):
    folder = request.getfixturevalue(place)
    shared = Shared(folder, settle_s=0)
    mine, yours = shared.get(recipe(1), CPU), shared.get(unmade(), CPU)
    mine["weight_NM"].zero_()
    assert value_of(mine) == 0
    assert value_of(yours) == value_of(shared.get(unmade(), CPU)) == 1


def test_what_is_mapped_stays_when_its_file_is_removed(disk):
    tensors = Shared(disk).get(recipe(3), CPU)
    disk.delete(files(disk)[0])
    assert value_of(tensors) == 3


def test_a_file_on_a_disk_is_told_by_its_bytes_each_time_it_is_mapped(disk, caplog):
    """Not only where its safetensors header is damaged."""
    shared = Shared(disk)
    shared.get(recipe(1), CPU)
    path = path_of(disk, files(disk)[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # as who maps it would see what is written into it
    path.write_bytes(data)
    assert value_of(shared.get(recipe(2), CPU)) == 2
    assert "is damaged; making it again" in caplog.text


def test_a_file_on_a_disk_can_be_read_by_everyones_tools(disk):
    Shared(disk).get(recipe(4), CPU)
    assert value_of(safetensors.torch.load_file(path_of(disk, files(disk)[0]))) == 4


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_folder_tells_when_its_files_were_written(place, request):
    folder = request.getfixturevalue(place)
    for index, name in enumerate(("b", "a")):
        folder.write(name, b"x")
        os.utime(path_of(folder, name), ns=(0, 1_700_000_000_123_456_789 + index))
    assert folder.modified_ns() == {"b": 1_700_000_000_123_456_789, "a": 1_700_000_000_123_456_790}
    assert folder.child("nowhere").modified_ns() == {}
