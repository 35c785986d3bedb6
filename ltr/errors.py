"""What a user is told: errors whose message is one line."""

from typing import Any


def printable(text: str) -> str:
    """The text in one line: line breaks and control characters, which names of files may hold, become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that begins with the option."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [f"error: {self}"]


class TrainingError(RuntimeError):
    """Training that cannot go on; the message is one line."""


class StorageError(OSError):
    """A file that cannot be written, as on a full disk; the message is one line that names it."""


def clip(text: Any) -> str:
    """What was given, as much of it as a line takes."""
    text = str(text) or "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."
