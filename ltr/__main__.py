"""`python -m ltr <command>`, or `ltr <command>` where the package is installed: what is done outside the notebooks."""

import sys
from collections.abc import Sequence
from importlib import import_module

from ltr import __version__
from ltr.errors import InputError
from ltr.runtime.options import nearest
from ltr.runtime.process import forgive_output, one_line

COMMANDS = {
    "sweep": "first-stage runs over seeds and weight decays",
    "balance": "balance a classifier that you have, on your own embeddings",
    "map": "learning rate x weight decay on held-out images, before and after balancing",
    "tune": "values of every row of Table 1, chosen on held-out images",
    "compare": "every second-stage method in one table, tuned on held-out images",
    "ship": "write the features that come with the package",
    "pack": "make the runs of a folder small enough to be committed: most weights and features are deleted",
    "tutorial": "the chapters as a folder of HTML pages",
    "maxnorm": "what MaxNorm does, and whether a radius is more than a temperature",
    "report": "tables of results, benchmarks and comparisons",
    "headline": "the five rows that the README begins with",
    "costs": "accuracy beside minutes and arithmetic, and beside the released code's",
    "doctor": "what this machine makes of the job, in a minute",
    "bench": "time this package beside a plain reference",
}
SCRIPT_OF = {"tune": "second", "ship": "second", "doctor": "first"}  # whose options a command takes as they are


def usage() -> str:
    """What `--help` prints."""
    lines = [f"  {name:8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: python -m ltr <command> [options]; <command> --help lists its options", "", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        InputError: there is no such command, or its options are not allowed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return
    if name in ("-V", "--version"):
        print(f"ltr {__version__}")
        return
    if name not in COMMANDS:
        raise InputError(f"command: must be one of {', '.join(COMMANDS)}, got {name}{nearest(name, list(COMMANDS))}")
    if {"-h", "--help"} & {*words}:
        of_script = f" It takes the options of the {SCRIPT_OF[name]} script, which says:" if name in SCRIPT_OF else ""
        print(f"ltr {name}: {COMMANDS[name]}.{of_script}\n")
    if arguments is None:
        sys.argv[0] = f"ltr {name}"  # what its own --help begins with
    import_module(f"ltr.study.{name}").main(words)


def console() -> None:
    """The console script: errors in one line, output that any terminal or reader takes."""
    sys.excepthook = one_line
    forgive_output()
    main()


if __name__ == "__main__":
    console()
