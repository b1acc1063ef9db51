import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from trainables.shared import Recipe, Shared, make_alone
from trainables.storage import Folder, StorageError

CPU = torch.device("cpu")
CHILD = """
import os, signal, sys, time
from pathlib import Path
import torch
from trainables.shared import Recipe, Shared, make_alone
from trainables.storage import Folder

address, work = sys.argv[1], Path(sys.argv[2])

def make(device):
    with (work / "makes").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    exec(sys.argv[3])
    return {"weight_NM": torch.full((3, 2), float(os.getpid()))}

(work / f"ready-{os.getpid()}").touch()
while not (work / "go").exists():
    time.sleep(0.005)
recipe = Recipe(name="teacher", ingredients={"seed": 1}, make=make)
print(Shared(Folder(address), settle_s=1.0).get(recipe, torch.device("cpu"))["weight_NM"][2, 1].item())
"""


@pytest.fixture
def work(tmp_path):
    """Where processes meet: what they made, and who is ready."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def disk(tmp_path):
    return Folder(tmp_path / "storage" / "shared")


@pytest.fixture
def bucket(tmp_path):
    """A folder that goes through pyarrow, as an object store does."""
    pytest.importorskip("pyarrow")
    (tmp_path / "bucket").mkdir()
    return Folder(f"file://{tmp_path}/bucket")


def recipe(value=1.0, *, seed=1, name="teacher", make=None):
    """What `CHILD` asks for too; `value` tells who made it."""
    return Recipe(name=name, ingredients={"seed": seed}, make=make or (lambda _: {"weight_NM": torch.full((3, 2), float(value))}))


def unmade():
    """A recipe that must be found, not made."""
    return recipe(make=lambda _: pytest.fail("made again"))


def value_of(tensors):
    (value,) = set(tensors["weight_NM"].flatten().tolist())
    return value


def files(folder, ending=".safetensors"):
    return [name for name in folder.names() if name.endswith(ending)]


def hidden(folder):
    return [path.name for path in Path(folder.address).iterdir() if path.name.startswith(".")]


def path_of(folder, name):
    return Path(folder.address.removeprefix("file://")) / name


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def processes(folder, work, *, number, while_making):
    """Let processes ask at the same time."""
    command = [sys.executable, "-W", "error", "-c", CHILD, folder.address, str(work), while_making]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(number)]
    try:
        wait_until(lambda: len(list(work.glob("ready-*"))) == number)
        (work / "go").touch()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def makers(work):
    return (work / "makes").read_text().split() if (work / "makes").exists() else []


def answers(started):
    values = [float(process.communicate(timeout=60)[0]) for process in started]
    assert all(process.returncode == 0 for process in started)
    return values


def test_processes_that_need_the_same_at_once_make_it_once_and_a_later_one_makes_nothing(disk, work):
    with processes(disk, work, number=2, while_making="time.sleep(0.5)") as started:
        first, second = answers(started)
    assert [str(int(first))] == makers(work)
    assert first == second == value_of(Shared(disk).get(unmade(), CPU))
    assert len(files(disk)) == 1


def test_who_waits_makes_it_when_the_maker_is_killed(disk, work, caplog):
    caplog.set_level(logging.INFO)
    with processes(disk, work, number=1, while_making="time.sleep(600)") as (maker,), ThreadPoolExecutor() as pool:
        wait_until(lambda: makers(work))
        waiting = pool.submit(Shared(disk).get, recipe(7), CPU)
        wait_until(lambda: "waits for teacher-" in caplog.text)
        assert files(disk) == []
        maker.kill()
        assert value_of(waiting.result(timeout=60)) == 7
    assert len(files(disk)) == 1


def test_what_a_maker_wrote_before_it_was_killed_is_neither_used_nor_kept(disk, work):
    with processes(disk, work, number=1, while_making="os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)") as (maker,):
        assert maker.wait(timeout=60) == -signal.SIGKILL
    partial = hidden(disk)
    assert len(partial) == 1
    assert path_of(disk, partial[0]).stat().st_size > 0
    Shared(disk).get(recipe(name="other"), CPU)
    assert hidden(disk) == partial  # it may be another's that is being written
    assert value_of(Shared(disk).get(recipe(7), CPU)) == 7
    assert hidden(disk) == []


def test_threads_of_a_process_make_it_once(disk):
    together, makes = threading.Barrier(4), []

    def make(_):
        makes.append(1)
        time.sleep(0.1)
        return {"weight_NM": torch.full((3, 2), 5.0)}

    def get(_):
        together.wait()
        return Shared(disk).get(recipe(make=make), CPU)

    with ThreadPoolExecutor(4) as pool:
        assert [value_of(tensors) for tensors in pool.map(get, range(4))] == [5.0] * 4
    assert len(makes) == 1


def test_a_thing_that_is_there_is_read_while_another_holds_the_lock(disk):
    def make(_):
        assert value_of(Shared(disk).get(unmade(), CPU)) == 1
        return {"other_N": torch.zeros(1)}

    Shared(disk).get(recipe(), CPU)
    Shared(disk).get(recipe(name="student", make=make), CPU)


def test_the_log_tells_who_makes_and_how_long(disk, caplog):
    caplog.set_level(logging.INFO)
    Shared(disk).get(recipe(), CPU)
    key = recipe().key
    assert [text.split(" in ")[0] for text in caplog.messages] == [f"makes {key}", f"made {key}"]
    assert caplog.messages[-1].endswith(" s")


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


DAMAGES = [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: b""]


@pytest.mark.parametrize("damage", DAMAGES)
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


@pytest.mark.parametrize("failing", ["write", "read", "names"])
def test_a_failing_storage_is_told_from_a_failing_maker(disk, failing, monkeypatch):
    def fail(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(Folder, failing, fail)
    with pytest.raises(StorageError, match=r"the storage must keep teacher-.*not yours.*; mend it and resume the study"):
        Shared(disk).get(recipe(), CPU)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_storage_that_gives_back_other_bytes_is_told_of(place, request, monkeypatch):
    monkeypatch.setattr(Folder, "read", lambda *_: b"other")
    with pytest.raises(StorageError, match="the storage must give back what it was given, but got a damaged teacher-"):
        Shared(request.getfixturevalue(place), settle_s=0).get(recipe(), CPU)


def test_a_file_on_a_disk_can_be_read_by_everyones_tools(disk):
    Shared(disk).get(recipe(4), CPU)
    assert value_of(safetensors.torch.load_file(path_of(disk, files(disk)[0]))) == 4


def test_processes_that_race_on_an_object_store_use_the_same(bucket, work):
    until_both_make = "while len((work / 'makes').read_text().split()) < 2: time.sleep(0.005)"
    with processes(bucket, work, number=2, while_making=until_both_make) as started:
        first, second = answers(started)
    assert len(makers(work)) == 2
    assert first == second == value_of(Shared(bucket, settle_s=0).get(unmade(), CPU))
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1


def test_of_makers_that_claim_at_the_same_time_the_losers_remove_theirs(bucket):
    class Simultaneous(Folder):
        def write(self, name, data):
            if name.endswith(".claim"):
                together.wait()
            super().write(name, data)

    together = threading.Barrier(4)
    shared = Shared(Simultaneous(bucket.address), settle_s=0.5)
    with ThreadPoolExecutor(4) as pool:
        values = {value_of(tensors) for tensors in pool.map(lambda value: shared.get(recipe(value), CPU), range(4))}
    assert values == {value_of(Shared(bucket, settle_s=0).get(unmade(), CPU))}
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1


@pytest.mark.parametrize("tick_s", [1, 0])
def test_the_earliest_claim_wins_and_of_equal_ones_the_first_by_name(bucket, tick_s):
    claims = {}
    for value in range(3):
        Shared(bucket, settle_s=0).get(recipe(value), CPU)
        (claim,) = files(bucket, ".claim")
        claims[claim] = (value, bucket.read(claim))
        bucket.delete(claim)
    by_time = sorted(claims, reverse=bool(tick_s))
    for index, claim in enumerate(by_time):
        bucket.write(claim, claims[claim][1])
        os.utime(path_of(bucket, claim), (1e9 + tick_s * index,) * 2)
    assert value_of(Shared(bucket, settle_s=0).get(unmade(), CPU)) == claims[by_time[0]][0]


def test_an_earlier_claim_that_shows_late_still_wins(bucket, monkeypatch):
    Shared(bucket, settle_s=0).get(recipe(1), CPU)
    early = files(bucket, ".claim")[0]
    content = bucket.read(early)
    bucket.delete(early)
    Shared(bucket, settle_s=0).get(recipe(2), CPU)

    def meanwhile(seconds):
        assert seconds == 7.5
        bucket.write(early, content)
        os.utime(path_of(bucket, early), (1e9, 1e9))

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert value_of(Shared(bucket, settle_s=7.5).get(unmade(), CPU)) == 1


def test_who_has_made_what_another_has_claimed_uploads_nothing(bucket):
    def make(_):
        Shared(bucket, settle_s=0).get(recipe(1), CPU)
        return {"weight_NM": torch.full((3, 2), 2.0)}

    written = []

    class Watched(Folder):
        def write(self, name, data):
            written.append(name)

    assert value_of(Shared(Watched(bucket.address), settle_s=0).get(recipe(make=make), CPU)) == 1
    assert written == []


def test_an_upload_that_nobody_claimed_is_not_used(bucket):
    class Failing(Folder):
        def write(self, name, data):
            if name.endswith(".claim"):
                raise ConnectionError("gone")
            super().write(name, data)

    with pytest.raises(StorageError, match="gone"):
        Shared(Failing(bucket.address), settle_s=0).get(recipe(1), CPU)
    assert len(files(bucket)) == 1
    assert value_of(Shared(bucket, settle_s=0).get(recipe(2), CPU)) == 2


def test_a_claim_to_what_is_not_there_is_told_of_and_removed(bucket, caplog):
    Shared(bucket, settle_s=0).get(recipe(1), CPU)
    bucket.delete(files(bucket)[0])
    assert value_of(Shared(bucket, settle_s=0).get(recipe(2), CPU)) == 2
    assert "is damaged; making it again" in caplog.text
    assert len(files(bucket)) == len(files(bucket, ".claim")) == 1


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_folder_tells_when_its_files_were_written(place, request):
    folder = request.getfixturevalue(place)
    for index, name in enumerate(("b", "a")):
        folder.write(name, b"x")
        os.utime(path_of(folder, name), ns=(0, 1_700_000_000_123_456_789 + index))
    assert folder.modified_ns() == {"b": 1_700_000_000_123_456_789, "a": 1_700_000_000_123_456_790}
    assert folder.child("nowhere").modified_ns() == {}


def base_of(*corpora, seed=0, makes=None):
    """A recipe of what others make: its value is ten times theirs, plus a half."""

    def make(_, given):
        if makes is not None:
            makes.append("base")
        return {"weight_NM": torch.full((3, 2), 10 * sum(value_of(tensors) for tensors in given.values()) + 0.5)}

    needs = {f"corpus{place}": corpus for place, corpus in enumerate(corpora)}
    return Recipe(name="base", ingredients={"seed": seed}, make=make, needs=needs)


def corpus_of(value, *, makes=None):
    def make(_):
        if makes is not None:
            makes.append("corpus")
        return {"weight_NM": torch.full((3, 2), float(value))}

    return recipe(seed=value, name="corpus", make=make)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_what_is_needed_is_made_first_and_once_for_all_that_need_it(place, request):
    folder, makes = request.getfixturevalue(place), []
    shared, corpus = Shared(folder, settle_s=0), corpus_of(7, makes=makes)
    for seed in (1, 2, 1):
        assert value_of(shared.get(base_of(corpus, seed=seed, makes=makes), CPU)) == 70.5
    assert makes == ["corpus", "base", "base"]
    assert value_of(shared.get(corpus_of(7, makes=makes), CPU)) == 7
    assert (len(makes), len(files(folder))) == (3, 3)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_what_was_needed_is_not_asked_for_again_once_the_thing_is_there(place, request):
    folder = request.getfixturevalue(place)
    shared = Shared(folder, settle_s=0)
    shared.get(base_of(corpus_of(7)), CPU)
    for name in [*files(folder), *files(folder, ".claim")]:
        if name.startswith("corpus-"):
            folder.delete(name)
    makes = []
    assert value_of(shared.get(base_of(corpus_of(7, makes=makes), makes=makes), CPU)) == 70.5
    assert makes == []


def test_a_maker_is_given_what_the_storage_gives_by_the_names_of_its_needs(disk):
    """The maker too uses what all others will: plain tensors of the CPU, though they were trained."""
    corpus = recipe(name="corpus", make=lambda _: {"trained": torch.nn.Parameter(torch.ones(2))})
    asked = []

    def make(device, given):
        asked.append((device, {name: dict(tensors) for name, tensors in given.items()}))
        return {"weight_NM": torch.zeros(1)}

    Shared(disk).get(Recipe(name="base", ingredients={}, make=make, needs={"text": corpus, "more": corpus_of(2)}), CPU)
    ((device, given),) = asked
    assert (device, sorted(given)) == (CPU, ["more", "text"])
    assert (type(given["text"]["trained"]), given["text"]["trained"].requires_grad) == (torch.Tensor, False)
    assert value_of(given["more"]) == 2


def test_needs_may_have_needs_of_their_own(disk):
    makes = []
    middle = base_of(corpus_of(1, makes=makes), corpus_of(2, makes=makes), makes=makes)
    top = base_of(middle, corpus_of(1, makes=makes), seed=5, makes=makes)
    assert value_of(Shared(disk).get(top, CPU)) == 10 * (30.5 + 1) + 0.5
    assert makes == ["corpus", "corpus", "base", "base"]
    assert len(files(disk)) == 4


def test_a_thing_of_other_needs_is_another_thing():
    recipes = [base_of(), base_of(corpus_of(1)), base_of(corpus_of(2)), base_of(corpus_of(1), corpus_of(2))]
    recipes += [base_of(base_of(corpus_of(1))), base_of(base_of(corpus_of(2)))]
    renamed = Recipe(name="base", ingredients={"seed": 0}, make=dict, needs={"text": corpus_of(1)})
    assert len({each.key for each in [*recipes, renamed]}) == 7
    assert base_of(corpus_of(1)).key == base_of(corpus_of(1)).key


def test_the_order_of_needs_is_none():
    one, other = corpus_of(1), corpus_of(2)
    keys = {
        Recipe(name="x", ingredients={}, make=dict, needs=needs).key for needs in ({"a": one, "b": other}, {"b": other, "a": one})
    }
    assert len(keys) == 1


def test_things_without_needs_keep_the_names_that_they_had():
    """Of files that studies have: the digest of name and ingredients alone."""
    assert recipe().canonical == '{"ingredients":{"seed":1},"name":"teacher"}'
    assert recipe().key == "teacher-" + hashlib.sha256(recipe().canonical.encode()).hexdigest()[:16]


def test_a_need_without_a_text_for_a_name_is_refused():
    with pytest.raises(ValueError, match="ingredients of x must be JSON values, but got a dict with a key that is no text"):
        Recipe(name="x", ingredients={}, make=dict, needs={1: corpus_of(1)})


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_need_that_fails_leaves_nothing_and_the_next_tries_itself(place, request):
    folder, makes = request.getfixturevalue(place), []

    def fail(_):
        raise ZeroDivisionError("no text")

    failing = recipe(seed=7, name="corpus", make=fail)
    with pytest.raises(ZeroDivisionError, match="no text"):
        Shared(folder, settle_s=0).get(base_of(failing, makes=makes), CPU)
    assert files(folder) == files(folder, ".claim") == makes == []
    assert value_of(Shared(folder, settle_s=0).get(base_of(corpus_of(7), makes=makes), CPU)) == 70.5


def test_a_damaged_need_is_made_again_and_used_whole(disk, caplog):
    shared, makes = Shared(disk), []
    shared.get(corpus_of(7), CPU)
    (name,) = files(disk)
    disk.write(name, b"!")
    assert value_of(shared.get(base_of(corpus_of(7, makes=makes)), CPU)) == 70.5
    assert makes == ["corpus"]
    assert "is damaged; making it again" in caplog.text


def test_threads_that_need_the_same_need_make_it_once(disk):
    together, makes = threading.Barrier(4), []

    def get(seed):
        together.wait()
        return Shared(disk).get(base_of(corpus_of(7, makes=makes), seed=seed % 2, makes=makes), CPU)

    with ThreadPoolExecutor(4) as pool:
        assert [value_of(tensors) for tensors in pool.map(get, range(4))] == [70.5] * 4
    assert sorted(makes) == ["base", "base", "corpus"]


def test_what_is_made_alone_is_what_a_storage_would_hold(disk):
    for wanted in (corpus_of(3), base_of(corpus_of(3)), base_of(base_of(corpus_of(1)), corpus_of(2))):
        assert value_of(make_alone(wanted, CPU)) == value_of(Shared(disk).get(wanted, CPU))


def test_the_log_tells_of_needs_before_what_needs_them(disk, caplog):
    """So that the seconds of the one do not hold those of the other."""
    caplog.set_level(logging.INFO)
    wanted = base_of(corpus_of(7))
    Shared(disk).get(wanted, CPU)
    corpus = corpus_of(7)
    expected = [f"{verb} {key}" for key in (corpus.key, wanted.key) for verb in ("makes", "made")]
    assert [text.split(" in ")[0] for text in caplog.messages] == expected
