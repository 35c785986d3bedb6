"""Long-tailed recognition by weight balancing (Alshammari et al., CVPR 2022, arXiv 2203.14197)."""

__version__ = "0.1.0"


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that begins with the option."""

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [f"error: {self}"]


class TrainingError(RuntimeError):
    """Training that cannot go on; the message is one line."""
