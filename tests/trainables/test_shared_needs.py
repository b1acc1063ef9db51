"""Things that are made of other things, and what is looked at before any of them is made."""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from shared_things import CPU, files, recipe, value_of

from trainables.shared import Recipe, Shared, make_alone


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


def refusing(name, asked, *needs, refuses=False):
    """A recipe that notes when it is looked at, and may refuse."""

    def check():
        asked.append(name)
        if refuses:
            raise ValueError(f"{name} must be there, but is not; put it there")

    named = {need.name: need for need in needs}
    return Recipe(name=name, ingredients={}, make=lambda *_: pytest.fail("made"), needs=named, check=check)


def test_all_that_a_thing_needs_is_looked_at_and_nothing_is_made():
    asked = []
    text = refusing("text", asked)
    top = refusing("top", asked, refusing("corpus", asked, text), refusing("tokenizer", asked))
    top.check_all()
    assert asked == ["top", "corpus", "text", "tokenizer"]


@pytest.mark.parametrize("refused", ["top", "corpus", "text"])
def test_what_is_of_no_use_is_refused_however_deep_it_lies(refused):
    asked, made = [], None
    for name in ("text", "corpus", "top"):
        made = refusing(name, asked, *([made] if made else []), refuses=name == refused)
    with pytest.raises(ValueError, match=f"{refused} must be there, but is not; put it there"):
        made.check_all()
    assert asked[-1] == refused


def test_a_look_is_neither_a_part_of_what_a_thing_is_nor_of_making_it(disk):
    asked = []
    checked = Recipe(name="corpus", ingredients={"seed": 7}, make=corpus_of(7).make, check=lambda: asked.append("corpus"))
    assert checked.key == corpus_of(7).key
    assert value_of(Shared(disk).get(base_of(checked), CPU)) == 70.5
    assert asked == []
    corpus_of(7).check_all()  # by default there is nothing to refuse
