"""Generated bad inputs: settings, trees and lists, each told apart by its words or its name.

A damage is a path below a tree and what is done to it.
"""

import dataclasses
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from trees import NAMES, flip_bit

from ltr.runtime.options import flag, real, whole
from ltr.settings import FirstStage, SecondStage

STAGES = (FirstStage, SecondStage)
SPLITS = ("train", "test")
IMAGES = {"train": 4, "test": 2}  # a class
Act = Callable[[Path], object]


# ---- settings

NO_NUMBER = ["", " ", "nan", "-nan", "inf", "-inf", "ten", "0x10", "1,5", "1e999", "½", "1 2", "None", "9" * 5000]
NO_WHOLE_NUMBER = ["1.5", "1e3", "2.0", "10**2", "1_", "1\n2"]
NO_FOLDER = ["", "  ", "a\0b", "\udcff", "~no-such-user/x"]
NO_DEVICE = ["", "gpu", "cuda:99", "cuda:-1", "cuda:" + "9" * 30, "cpu:x", "meta", "hpu", "ü", "\udcff", "0"]
NO_CHOICE = ["", " ", "null", "0", "ü", "\u202e", "a\nb", "x" * 1000]


def bad_values(field: dataclasses.Field) -> list[str]:
    """Values that an option must refuse, by its kind and bounds."""
    about = field.metadata
    if field.name == "device":
        return NO_DEVICE
    if about["choices"]:
        return NO_CHOICE + [word for choice in about["choices"] for word in (choice.upper(), f"{choice}x")]
    if about["read"] not in (whole, real):
        return NO_FOLDER
    values = NO_NUMBER + (NO_WHOLE_NUMBER if about["read"] is whole else [])
    if about["low"] is not None:
        values = [*values, f"{about['low'] - 1}", f"-{10**30}", "-1e-9"]
    if about["above"] is not None:
        values = [*values, f"{about['above']}", "-1", "-1e300"]
    if about["high"] is not None:
        values = [*values, f"{about['high'] + 1}", f"{10**30}"]
    return values


def bad_words(field: dataclasses.Field) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The option that the message begins with, and the words."""
    name, choices = flag(field.name), field.metadata["choices"]
    if isinstance(field.default, bool):
        yield name, (f"{name}=yes",)
        return
    good = choices[0] if choices else "3"
    yield from ((name, (f"{name}={value}",)) for value in bad_values(field))
    yield name, (name,)  # no value
    yield name, (name, "--retrain")
    yield name, (name, good, name, good)  # twice
    yield f"{name}x", (f"{name}x", good)  # no such option
    if "_" in field.name:
        yield f"--{field.name}", (f"--{field.name}", good)
    if not name.startswith("--h"):  # `-hold-out` would be `-h` with a value
        yield "--help", (name[1:], good)
    yield "--help", (name[2:], good)


def bad_settings() -> Iterator[tuple[type, str, tuple[str, ...]]]:
    """Parser, option and words."""
    for stage in STAGES:
        yield from ((stage, *case) for field in dataclasses.fields(stage) for case in bad_words(field))
        yield from ((stage, "--help", (word,)) for word in ("", "3", "ü", "train", "a\nb", "-x", "—epochs", "\udcff"))
        yield stage, "--resume", ("--resume", "--retrain")
        yield stage, "--no-such-option", ("--no-such-option", "\n")


# ---- trees


def replace(make: Act) -> Act:
    """Remove what is at a path, and put something there."""

    def act(path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return act


def nothing(path: Path) -> None:
    """Leave the place empty."""


def looping_link(path: Path) -> None:
    path.symlink_to(path)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def holding(*names: str) -> Act:
    """A folder with these files, none of which is an image."""

    def make(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"no image")

    return make


def link_to_itself(path: Path) -> None:
    path.mkdir()
    (path / "more").symlink_to(path)


NO_FOLDER_THERE = {
    "nothing": nothing,
    "a file": Path.touch,
    "an empty folder": Path.mkdir,
    "a looping link": looping_link,
    "a dangling link": dangling_link,
}
NO_SPLIT = NO_FOLDER_THERE | {
    "loose images": holding("a.png", "b.png"),
    "hidden classes": holding(".ant/a.png", ".bee/a.png"),
}
NO_CLASS = NO_FOLDER_THERE | {
    "notes": holding("notes.txt", "labels.csv", "png"),
    "hidden images": holding(".a.png", "._b.png"),
    "images in a hidden folder": holding(".more/a.png"),
    "an empty folder in a folder": lambda path: (path / "more").mkdir(parents=True),
    "a link to itself": link_to_itself,
}


def cut(share: float) -> Act:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def bomb(path: Path) -> None:
    """A PNG that says it is 60,000 x 60,000."""
    content = path.read_bytes()
    path.write_bytes(content[:16] + (60_000).to_bytes(4, "big") * 2 + content[24:])


NO_IMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("an image of an ant"),
    "zeros": lambda path: path.write_bytes(bytes(500)),
    "only a signature": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "of another size": lambda path: Image.new("RGB", (9, 4)).save(path),
    "turned": lambda path: Image.new("RGB", (6, 5)).save(path),
    "a bomb": bomb,
    "a looping link": replace(looping_link),
    "a dangling link": replace(dangling_link),
    "broken in its header": lambda path: path.write_bytes(flip_bit(path.read_bytes(), 11, 3)),
    **{f"cut to {share:.0%}": cut(share) for share in (0.05, 0.2, 0.4, 0.6, 0.8)},
    **({"a pipe": replace(os.mkfifo)} if hasattr(os, "mkfifo") else {}),
}


def rename_class(name: str) -> Act:
    return lambda tree: [(tree / split / "cow").rename(tree / split / name) for split in SPLITS]


def bad_trees() -> Iterator[tuple[str, str, Act]]:
    """What is wrong, where, and how to make it so."""
    for split, count in IMAGES.items():
        for kind, make in NO_SPLIT.items():
            yield f"{split} is {kind}", split, replace(make)
        yield f"another class in {split}", split, lambda path: shutil.copytree(path / "ant", path / "dog")
        for folder in (f"{split}/{name}" for name in NAMES):
            for kind, make in NO_CLASS.items():
                yield f"{folder} is {kind}", folder, replace(make)
            for file in (f"{folder}/{number:03d}.png" for number in {0, count - 1}):
                for kind, act in NO_IMAGE.items():
                    yield f"{file} is {kind}", file, act
    for kind, name in {"a line break": "a\nb", "an escape": "\x1b[31mred", "no text": "\udcff"}.items():
        yield f"{kind} in a class's name", ".", rename_class(name)


# ---- list files


def put_line(number: int, line: str) -> Act:
    """Put something in the place of a line, `{path}` and `{label}` being what stood there."""

    def act(path: Path) -> None:
        lines = path.read_text().splitlines()
        image, label = lines[number - 1].split()
        lines[number - 1] = line.format(path=image, label=label)
        path.write_text("\n".join(lines), "utf-8", "surrogateescape")

    return act


def relabel(label: int, other: int) -> Act:
    return lambda path: path.write_text(path.read_text().replace(f" {label}\n", f" {other}\n"))


def write(content: str) -> Act:
    return lambda path: path.write_text(content)


BAD_LINES = [
    *("{path}", "{label}", "{path} {label} {label}", "{path},{label}", "# {path} {label}", "{label} {path}", "a b c"),
    *("{path} -1", "{path} ant", "{path} 1.0", "{path} 1e0", "{path} nan", "{path} +1", "{path} 0x1", "{path} 1_0"),
    *("{path} ½", "{path} ²", "{path} ١", "{path} 999999999999", "{path} " + "9" * 5000, "{path} \udcff"),
    *("../{path} {label}", "/{path} {label}", "train/../../{path} {label}", "/etc/passwd {label}", "/dev/zero {label}"),
    *("{path}x {label}", "./ {label}", "train {label}", "{path}\0 {label}", "\udcff {label}"),
    "x" * 5000 + " {label}",
]
BAD_FILES = {
    "nothing": nothing,
    "a folder": Path.mkdir,
    "a looping link": looping_link,
    "a dangling link": dangling_link,
    "empty": Path.touch,
    "blank": write("\n  \n\t\n"),
    "JSON": write('[["train/ant/000.png", 0]]'),
    "UTF-16": lambda path: path.write_text("train/ant/000.png 0\n", "utf-16"),
    "Latin-1": lambda path: path.write_text("train/fourmi_agée.png 0\n", "latin-1"),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(1000)),
    "a picture": lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"),
}
BAD_CLASSES = {
    "ant": "train.txt line ",
    "ant\nbee": "train.txt line ",
    "a\nb\nc\nd": "classes.txt",
    "\n": "classes.txt",
}


def bad_lists() -> Iterator[tuple[str, str, Act, str]]:
    """What is wrong, in which file, how to make it so, and what the message says of where."""
    for split, count in IMAGES.items():
        file = f"{split}.txt"
        for number in (1, count * len(NAMES)):
            for line in BAD_LINES:
                yield f"{file} {number} is {line}", file, put_line(number, line), f"{file} line {number}: "
        for kind, make in BAD_FILES.items():
            yield f"{file} is {kind}", file, replace(make), file
        for k in range(3):
            where = "test.txt line " if (split, k) == ("train", 2) else file  # there train.txt has one class fewer
            yield f"{file} has no class {k}", file, relabel(k, (k + 1) % 2 if k == 2 else 2), where
    for label in (3, 4, 1000, 999_999_999):
        yield f"test label {label}", "test.txt", put_line(2, f"{{path}} {label}"), "test.txt line 2: "
        yield f"train label {label + 1}", "train.txt", put_line(2, f"{{path}} {label + 1}"), "train.txt"
    for file, number in (("train.txt", 2), ("train.txt", 5), ("train.txt", 12), ("test.txt", 1), ("test.txt", 6)):
        again = put_line(number, "train/ant/000.png 0")
        yield f"{file} {number} is train.txt 1", file, again, f"{file} line {number}: "
    for names, where in BAD_CLASSES.items():
        yield f"classes.txt is {names!r}", "classes.txt", write(names), where


SETTINGS = list(dict.fromkeys(bad_settings()))
TREES = list(bad_trees())
LISTS = list(bad_lists())
