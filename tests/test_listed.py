"""The large benchmarks' files in their real formats: what is read, and the one line that each fault ends in."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from trees import BENCHMARK_TEST, BENCHMARK_TRAIN, SUFFIX, complaint, shrink_benchmarks, write_benchmark, write_json

from ltr import datasets
from ltr.data import large_sets
from ltr.data.images import Absent
from ltr.data.large_sets import LARGE_SETS
from ltr.settings import FirstStage

SOURCES = tuple(LARGE_SETS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink_benchmarks(monkeypatch)


@pytest.fixture
def imagenet(tmp_path):
    return write_benchmark(tmp_path / "imagenet", "imagenet-lt")


@pytest.fixture
def inaturalist(tmp_path):
    return write_json(write_benchmark(tmp_path / "inat", "inaturalist2018"))


def load(source: str, root: Path, **options) -> datasets.LongTailed:
    return datasets.load(source, root, **{"imbalance_factor": 1.0, "profile": "as-is", **options})


# ---- what is read


def test_published_counts(monkeypatch):
    monkeypatch.undo()
    counts = {source: (*about.counts.values(), about.num_classes) for source, about in LARGE_SETS.items()}
    assert counts == {
        "imagenet-lt": (115_846, 20_000, 50_000, 1000),
        "places-lt": (62_500, 7_300, 36_500, 365),
        "inaturalist2018": (437_513, 24_426, 8142),
    }


@pytest.mark.parametrize("source", SOURCES)
def test_a_benchmark_is_read_as_it_is(tmp_path, source):
    data = load(source, write_benchmark(tmp_path, source))
    assert (data.name, data.class_counts.tolist()) == (source, list(BENCHMARK_TRAIN))
    assert np.bincount(data.test.labels).tolist() == list(BENCHMARK_TEST)
    assert (data.validation is None) == (source == "inaturalist2018")
    assert data.train.paths[0].endswith(f"190{SUFFIX[source]}")
    assert data.describe()["test_images"] == 12


def test_classes_have_their_folders_names(tmp_path, imagenet):
    assert load("imagenet-lt", imagenet).class_names == ["n01440764", "n01443537", "n01484850"]
    places = write_benchmark(tmp_path / "places", "places-lt")
    assert load("places-lt", places).class_names == ["airfield", "airplane_cabin", "airport_terminal"]


def test_paths_in_full_are_the_same_set(imagenet):
    relative = load("imagenet-lt", imagenet).describe()
    for path in imagenet.glob("*.txt"):
        path.write_text("".join(f"{imagenet}/{line}\n" for line in path.read_text().splitlines()))
    assert load("imagenet-lt", imagenet).describe() == relative


def test_json_and_lists_are_the_same_set(tmp_path, inaturalist):
    lists = load("inaturalist2018", write_benchmark(tmp_path / "lists", "inaturalist2018"))
    from_json = load("inaturalist2018", inaturalist)
    assert from_json.describe()["fingerprint"] == lists.describe()["fingerprint"]
    assert from_json.class_names == ["species 0", "species 1", "species 2"]
    assert lists.class_names == ["0", "1", "2"]


def test_the_fingerprint_names_the_list_and_not_its_order(imagenet):
    train = load("imagenet-lt", imagenet).train
    shuffled = train.take(np.random.default_rng(0).permutation(len(train)))
    assert shuffled.fingerprint() == train.fingerprint()
    assert train.take(np.arange(45)).fingerprint() != train.fingerprint()


def test_images_of_inaturalist_may_be_held_out(inaturalist):
    data = load("inaturalist2018", inaturalist, hold_out=2)
    assert data.class_counts.tolist() == [28, 10, 2]
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert len(data.for_tuning().test) == 6


def test_the_montage_sees_small_pictures(imagenet):
    train = load("imagenet-lt", imagenet).train
    pictures = np.full((8, *train.images.shape[1:]), 255, np.uint8)
    members = train.images[train.labels == 2][:8]
    pictures[: len(members)] = members
    assert len(members) == 4
    assert pictures[0].mean((0, 1)).argmax() == 2  # its class's colour
    assert (pictures[4:] == 255).all()


def test_folders_are_listed_once_and_no_file_is_looked_at(imagenet, monkeypatch):
    seen, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: seen.append(path) or listdir(path))
    monkeypatch.setattr("ltr.data.streaming.decode", lambda path: pytest.fail(f"{path} was opened"))
    load("imagenet-lt", imagenet)
    assert len(seen) == 9  # three folders of each list


# ---- faults of any benchmark


def edit(name: str, old: str, new: str):
    """Replace the first such words in a file of the folder."""

    def act(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return act


TRAIN, FIRST = "ImageNet_LT_train.txt", "train/n01440764/n01440764_190.JPEG 0\n"
LAST = "train/n01484850/n01484850_193.JPEG 2\n"
FAULTS = {
    "a line less": (edit(TRAIN, LAST, ""), f"{TRAIN} must list 46 images, it lists 45"),
    "a line more": (edit("ImageNet_LT_val.txt", "\n", "\nx.JPEG 0\n"), "val.txt must list 6 images, it lists 7"),
    "a blank list": (lambda root: (root / TRAIN).write_text("\n"), "must have at least one line, it is empty"),
    "a word for a label": (edit(TRAIN, FIRST, FIRST.replace("0\n", "cat\n")), "line 1: the label must be a whole"),
    "a label beyond": (edit(TRAIN, LAST, LAST.replace("2\n", "3\n")), "line 46: the label must be at most 2, got 3"),
    "no label": (edit(TRAIN, FIRST, FIRST.replace(" 0", "")), "line 1: must be a path and a label"),
    "a class less": (
        lambda root: (root / "ImageNet_LT_val.txt").write_text(
            (root / "ImageNet_LT_val.txt").read_text().replace(" 2", " 1")
        ),
        "val.txt must have an image of each class 0 to 2, class 2 has none",
    ),
    "a repetition": (edit(TRAIN, LAST, FIRST), "line 46: each image must be listed once"),
    "a test image": (
        edit("ImageNet_LT_test.txt", "val/n01440764/n01440764_9000.JPEG", FIRST.split()[0]),
        "listed once",
    ),
    "a way out": (edit(TRAIN, FIRST, f"../{FIRST}"), "line 1: the path must lead to a file below"),
    "another root": (edit(TRAIN, FIRST, f"/elsewhere/{FIRST}"), "line 1: the path must lead to a file below"),
    "an absent image": (
        lambda root: (root / "train/n01443537/n01443537_195.JPEG").unlink(),
        f"{TRAIN} line 36: must name an image file, there is no file",
    ),
    "an absent folder": (
        lambda root: shutil.rmtree(root / "val/n01484850"),
        "8 of the 12 images of ImageNet_LT_test.txt are there",
    ),
    "no text": (lambda root: (root / TRAIN).write_bytes(b"\xff\xfe"), f"{TRAIN} line 1: must be UTF-8 text"),
    "a folder for a list": (lambda root: [(root / TRAIN).unlink(), (root / TRAIN).mkdir()], "must be a text file"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_ends_in_one_line(imagenet, kind):
    act, says = FAULTS[kind]
    act(imagenet)
    before = sorted(imagenet.rglob("*"))
    message = complaint(load, "imagenet-lt", imagenet)
    assert message.startswith("--data-root: ")
    assert says in message
    assert sorted(imagenet.rglob("*")) == before


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_there_is_absent(tmp_path, source):
    message = complaint(load, source, tmp_path, error=Absent)
    assert message.startswith(f"--data-root: must hold {LARGE_SETS[source].files['train'][0]}")
    assert f"for --dataset {source}" in message
    complaint(load, source, tmp_path / "nowhere", error=Absent)


# ---- faults of iNaturalist's JSON


def change(name: str, act):
    """Change a JSON file's content."""

    def on(root: Path) -> None:
        content = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(act(content) or content))

    return on


BAD_JSON = {
    "a list": (change("train2018.json", lambda c: [c]), "train2018.json must have images, annotations and categories"),
    "no annotations": (change("val2018.json", lambda c: c.pop("annotations") and c), "it has no annotations"),
    "an image without an id": (
        change("train2018.json", lambda c: c["images"][3].pop("id") and None),
        "image 3: id must",
    ),
    "a number for a name": (
        change("train2018.json", lambda c: c["images"][0].update(file_name=7)),
        "image 0: file_name must be a text, got 7",
    ),
    "a word for a category": (
        change("train2018.json", lambda c: c["annotations"][0].update(category_id="0")),
        'annotation 0: category_id must be a whole number, got "0"',
    ),
    "a category below": (
        change("train2018.json", lambda c: c["annotations"][0].update(category_id=-1)),
        "annotation 0: category_id must be at least 0, got -1",
    ),
    "a category beyond": (
        change("train2018.json", lambda c: c["annotations"][0].update(category_id=3)),
        "image 0: the label must be at most 2, got 3",
    ),
    "two annotations": (
        change("train2018.json", lambda c: c["annotations"].append(c["annotations"][0])),
        "annotation 46: each image must have one annotation, image 100 has two",
    ),
    "no annotation of an image": (
        change("train2018.json", lambda c: c["annotations"].pop(5) and None),
        "image 5: must have an annotation, there is none of image 105",
    ),
    "an image less": (
        change("train2018.json", lambda c: c["images"].pop() and None),
        "train2018.json must list 46 images, it lists 45",
    ),
    "a way out": (
        change("train2018.json", lambda c: c["images"][0].update(file_name="../../x.jpg")),
        "image 0: the path must lead to a file below",
    ),
    "a text for an entry": (
        change("val2018.json", lambda c: c["images"].insert(0, "x")),
        "image 0: id must be a whole",
    ),
    "half a file": (lambda root: (root / "val2018.json").write_text('{"images": ['), "must be a whole JSON file"),
    "a deep file": (lambda root: (root / "val2018.json").write_text("[" * 100_000), "must be a whole JSON file"),
    "no text": (lambda root: (root / "val2018.json").write_bytes(b"\xff\x00\xff"), "must be a whole JSON file"),
    "a folder": (
        lambda root: [(root / "val2018.json").unlink(), (root / "val2018.json").mkdir()],
        "must be a JSON file that can be read (Is a directory)",
    ),
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_wrong_json_ends_in_one_line(inaturalist, kind):
    act, says = BAD_JSON[kind]
    act(inaturalist)
    message = complaint(load, "inaturalist2018", inaturalist)
    assert message.startswith(f"--data-root: {inaturalist}")
    assert says in message


def test_categories_without_names_of_their_own_go_by_their_labels(inaturalist):
    change("train2018.json", lambda c: c["categories"][0].update(name="species 1"))(inaturalist)
    change("val2018.json", lambda c: c["categories"][0].update(name="species 1"))(inaturalist)
    assert load("inaturalist2018", inaturalist).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda categories: categories[:2], id="too few"),
        pytest.param(lambda categories: [*categories, {"id": 3, "name": "species 3"}], id="too many"),
        pytest.param(lambda categories: [*categories, {"id": 2, "name": "species 3"}], id="an id twice"),
        pytest.param(lambda categories: [c | {"id": c["id"] + 1} for c in categories], id="ids from 1 on"),
        pytest.param(lambda categories: [*categories[:2], {"id": 2}], id="no name"),
    ],
)
def test_categories_that_are_not_the_classes_name_none(inaturalist, act):
    for name in ("train2018.json", "val2018.json"):
        change(name, lambda c: c | {"categories": act(c["categories"])})(inaturalist)
    assert load("inaturalist2018", inaturalist).class_names == ["0", "1", "2"]


def test_one_file_may_name_the_classes_for_both(inaturalist):
    change("train2018.json", lambda c: c | {"categories": c["categories"][:2]})(inaturalist)
    assert load("inaturalist2018", inaturalist).class_names == ["species 0", "species 1", "species 2"]


def test_both_files_must_name_the_classes_alike(inaturalist):
    change("val2018.json", lambda c: c["categories"][1].update(name="species 3"))(inaturalist)
    message = complaint(load, "inaturalist2018", inaturalist)
    assert "val2018.json must name the classes as train2018.json does" in message
    assert message.endswith("class 1 is species 1 there, got species 3")


# ---- options


@pytest.mark.parametrize(
    ("option", "value", "must"),
    [
        *(("profile", value, "as-is with {}, which is long-tailed already") for value in ("exp", "step")),
        *(("choice", value, "first with {}, all of whose images stay") for value in ("random", "hash")),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_cut_or_chosen_from_a_benchmark(tmp_path, source, option, value, must):
    words = f"--preset paper --dataset {source} --{option} {value} --out {tmp_path / 'out'}".split()
    says = f"--{option}: must be {must.format(source)}, got {value}"
    assert complaint(FirstStage.parse, words) == says
    assert complaint(lambda: load(source, tmp_path, **{option: value})) == says
    assert not (tmp_path / "out").exists()


def test_a_set_with_a_validation_list_holds_nothing_out(imagenet):
    message = complaint(lambda: load("imagenet-lt", imagenet, hold_out=1))
    assert message == "--hold-out: must be 0 with imagenet-lt, which has a validation list, got 1"


def test_a_line_is_no_longer_than_it_must(inaturalist):
    change("train2018.json", lambda c: c["images"][0].update(id="x" * 5000))(inaturalist)
    assert len(complaint(large_sets.read, "inaturalist2018", inaturalist)) < 300
