"""Long-tailed recognition by weight balancing (Alshammari et al., CVPR 2022, arXiv 2203.14197)."""

from ltr.errors import InputError, StorageError, TrainingError

__version__ = "0.1.0"
__all__ = ["InputError", "StorageError", "TrainingError"]
