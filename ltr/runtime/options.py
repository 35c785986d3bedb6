"""Options as dataclass fields: what each takes, how its text is read, and one line where it is wrong.

`settings` declares them; the parser here is argparse's, which raises `InputError` in place of printing its usage.
"""

import argparse
import dataclasses
import difflib
import math
import operator
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ltr.errors import InputError, clip

PACKAGE = Path(__file__).resolve().parents[1]
DISTRIBUTION = "ltr-weight-balancing"  # what pip calls it; its `ltr` is another package
BOUNDS = (("low", "at least", operator.ge), ("above", "above", operator.gt), ("high", "at most", operator.le))


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the root of this package's source, by its pyproject.toml."""
    try:
        return f'\nname = "{DISTRIBUTION}"\n' in (folder / "pyproject.toml").read_text("utf-8")
    except (OSError, ValueError):
        return False


# Where the defaults of folders lie: a checkout's root; installed elsewhere, the folder that one works in.
ROOT = PACKAGE.parent if is_checkout(PACKAGE.parent) else Path.cwd()


def whole(text: str) -> int:
    """A whole number."""
    return int(text)


def real(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def folder(text: str) -> Path:
    """A folder, from the one that one works in where it is relative."""
    if not text.strip() or "\0" in text:
        raise ValueError(text)
    text.encode()  # a ValueError for bytes that are no text, which could not be printed
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except RuntimeError as error:  # ~somebody who is not known here
        raise ValueError(text) from error


def file(text: str) -> Path:
    """A file, from the folder that one works in where it is relative."""
    return folder(text)


def run_name(text: str) -> str:
    """The name of a run's folder."""
    if not text.strip() or not text.isprintable() or Path(text).name != text:
        raise ValueError(text)
    return text


def short(text: Any, folder: Path = ROOT) -> str:
    """Text with paths below a folder shown from there."""
    return re.sub(rf"(?<![\w/\\]){re.escape(str(folder) + os.sep)}", "", str(text))


def option(
    default: Any,
    help: str,
    read: Callable[[str], Any] = str,
    choices: Sequence[str] = (),
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field that is an option; a default of None is filled from the preset."""
    metadata = {"help": help, "read": read, "choices": choices, "low": low, "above": above, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


KINDS = {whole: "a whole number", real: "a number", folder: "a folder", file: "a file", run_name: "a run's name"}


def allowed(metadata: Mapping[str, Any]) -> str:
    """Say in words what an option takes."""
    if metadata["choices"]:
        return "one of " + ", ".join(metadata["choices"])
    bounds = " and ".join(f"{words} {metadata[key]}" for key, words, _ in BOUNDS if metadata[key] is not None)
    return f"{KINDS.get(metadata['read'], 'text')} {bounds}".strip()


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def nearest(text: str, names: Sequence[str]) -> str:
    """Words that name the valid name nearest to a wrong one, if there is one near."""
    near = difflib.get_close_matches(text.lower(), names, 1, 0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def check(name: str, text: Any, metadata: Mapping[str, Any]) -> Any:
    """Turn an option's text into its value.

    Raises:
        InputError: it is not allowed; the message says what is, and the nearest valid name.
    """
    try:
        value = metadata["read"](text) if isinstance(text, str) else text
        good = not metadata["choices"] or value in metadata["choices"]
        good &= all(metadata[key] is None or holds(value, metadata[key]) for key, _, holds in BOUNDS)
    except ValueError:
        good = False
    if good:
        return value
    hint = nearest(str(text), metadata["choices"])
    raise InputError(f"{flag(name)}: must be {allowed(metadata)}, got {clip(text)}{hint}")


def join_negative(arguments: Sequence[str]) -> list[str]:
    """Write `--lr -1e-4` as `--lr=-1e-4`, which argparse would else take for two options."""
    words: list[str] = []
    for word in arguments:
        if words and words[-1].startswith("--") and re.match(r"-(\d|\.|inf|nan)", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def split_words(text: str, windows: bool = os.name == "nt") -> list[str]:
    r"""The words of a string as of a command line, but that paths may have backslashes: C:\data.

    A backslash before an ordinary character stands for itself, on Windows each one that is not in single quotes.

    Args:
        text: of `LTR_ARGS`.
        windows: whether this is Windows.

    Raises:
        InputError: a quotation in it does not end.
    """
    shell = r"""(?P<kept>'[^']*'|"(?:\\.|[^"\\])*"|\\[\\\s"'])|\\"""
    plain = r"""(?P<kept>'[^']*')|"[^"]*"|\\"""
    words = re.sub(plain if windows else shell, lambda found: found["kept"] or found[0].replace("\\", "\\\\"), text)
    try:
        return shlex.split(words)
    except ValueError as error:
        raise InputError(f"LTR_ARGS: must be options as on a command line ({error})") from error


class Once(argparse.Action):
    """Keep an option's value, and refuse a second one."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, flag: str | None = None) -> None:
        if (first := getattr(namespace, self.dest)) is not None:
            raise InputError(f"{flag}: must be given once, got {clip(first)} and {clip(value)}")
        setattr(namespace, self.dest, value)


class Parser(argparse.ArgumentParser):
    """argparse that raises one line instead of printing its usage, and takes options by their whole names alone.

    Args:
        about: a module's docstring, whose first line is the description.
    """

    def __init__(self, about: str | None = None, **how: Any) -> None:
        told = {} if about is None else {"description": about.splitlines()[0].rstrip(":.") + "."}
        super().__init__(allow_abbrev=False, **told, **how)

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        required = "the following arguments are required: "
        if message.startswith(required):
            raise InputError(f"{message.removeprefix(required)}: must be given")
        kinds = {read.__name__: kind for read, kind in KINDS.items()}
        if (found := re.search(r"^(.*): invalid (\w+) value: '(.*)'$", message)) and found[2] in kinds:
            message = f"{found[1]}: must be {kinds[found[2]]}, got {clip(found[3])}"
        message = re.sub("expected (at least )?one argument", "must have a value", message.replace("argument ", "", 1))
        raise InputError(message.replace("ignored explicit argument", "must have no value, got"))

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse's, but a word that is no option is answered with the option nearest to it."""
        options, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return options
        word = unknown[0].split("=")[0]
        hint = nearest(word, [name for action in self._actions for name in action.option_strings])
        if word.startswith("--"):
            raise InputError(f"{clip(word)}: must be one of the options that --help lists{hint}")
        raise InputError(f"--help: each word must be an option or its value, got {clip(word)}{hint}")


def parser_of(options: type) -> Parser:
    """The parser of a dataclass of options, one a field, and `--resume` beside `--retrain`."""
    parser = Parser(about=options.__doc__)
    names = {field.name for field in dataclasses.fields(options)}
    if "retrain" in names:
        resume = "go on where a run stopped (the default; not with --retrain)"
        parser.add_argument("--resume", action="store_true", default=None, help=resume)
    nothing = "by preset" if "preset" in names else "none"
    for field in dataclasses.fields(options):
        if isinstance(field.default, bool):
            parser.add_argument(flag(field.name), action="store_true", default=None, help=field.metadata["help"])
            continue
        default = nothing if field.default is None else field.default
        default = "the machine's cores less one" if field.name == "workers" else default
        text = f"{field.metadata['help']}: {allowed(field.metadata)} (default: {default})"
        parser.add_argument(flag(field.name), action=Once, metavar=field.name.upper(), help=text.replace("%", "%%"))
    return parser


def given_values(options: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Values of those options of a dataclass that a list of words gives, by their names.

    Raises:
        InputError: a word is not known, or a value not allowed.
    """
    known = {field.name: field.metadata for field in dataclasses.fields(options)}
    words = vars(parser_of(options).parse_args(join_negative(arguments)))
    given = {name: text for name, text in words.items() if text is not None}
    return {name: check(name, text, known[name]) if name in known else text for name, text in given.items()}
