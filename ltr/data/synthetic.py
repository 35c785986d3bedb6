"""Twenty kinds of coloured shapes, drawn with NumPy from a seed: a set for demos and tests with no download.

A class is a shape and a colour, such as "red ring" or "blue cross". Position, size, tilt, tint, background,
clutter and noise vary within a class, all of them evenly to the left and to the right, so that a mirrored
image is of the same class. A rare class of a long tail shares its shape and its colour with common ones:
they teach the features that it needs, and take its images where the classifier favours them.

Pixels come from uniform draws by +, -, *, / and square roots only, which IEEE 754 rounds one way, so
the bytes do not depend on a machine's sine or exponential.
"""

import itertools
from collections.abc import Callable

import numpy as np

from ltr.data.images import SPLITS, LabelledImages, Parts

SYNTHETIC = {"train": 250, "test": 50}  # images a class
SIZE = 16  # S, pixels of a side
COLOURS = {  # RGB in 0..1
    "red": (0.90, 0.22, 0.20),
    "green": (0.22, 0.72, 0.30),
    "violet": (0.62, 0.25, 0.85),
    "yellow": (0.90, 0.78, 0.20),
    "blue": (0.20, 0.40, 0.90),
}
RADIUS = (0.25, 0.37)  # of a shape, as a share of the image's side
TILT = 0.5  # steepest slope of a shape's base
ROOM = 0.4  # share of the way to the edge that a shape's centre may go
TINT = 0.3  # largest change of a colour's channel
DULL = 0.35  # least channel of the background, as far from 0 as the largest from 1
SPOTS = 3  # small discs of clutter behind the shape
NOISE = 0.18  # half-width of the triangular noise of a pixel's channel
DRAWS = 14 + 6 * SPOTS  # uniform numbers an image takes, beside its noise


# Signed distances, negative inside a shape about two units wide; to a cross and to two bars exact at their sides.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.sqrt(x * x + y * y) - 0.9,
    "ring": lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.75) - 0.22,
    "cross": lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)) - 1.0, np.minimum(np.abs(x), np.abs(y)) - 0.27),
    "bars": lambda x, y: np.maximum(np.abs(np.abs(x) - 0.58) - 0.25, np.abs(y) - 0.85),
}
# Four shapes and five colours have no common divisor, so counting both up runs through all twenty pairs, and neighbours
# differ in both.
PAIRS = list(itertools.islice(zip(itertools.cycle(COLOURS), itertools.cycle(SHAPES), strict=False), 20))


def directions(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [B], [B] from uniform draws [B]: points of a diamond, brought to length one."""
    x = np.abs(4 * u - 2) - 1
    y = 1 - np.abs(np.abs(4 * u - 1) - 2)
    length = np.sqrt(x * x + y * y)
    return x / length, y / length


def paint(canvas: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lay a colour over the pixels inside a shape, with edges one pixel soft.

    Args:
        canvas: [B, S, S, 3].
        distance: [B, S, S], signed, in pixels.
        colour: [B, 3].
    """
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return canvas + cover * (colour[:, None, None] - canvas)


def backdrop(u: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A gradient between two dull colours, with small bright discs on it.

    Args:
        u: uniform draws [B, 7 + 6 * SPOTS].
        x, y: pixel centres [1, S, S], 0 in the middle of the image.

    Returns:
        float32 [B, S, S, 3].
    """
    size = x.shape[-1]
    along_x, along_y = directions(u[:, 0])
    blend = 0.5 + (along_x[:, None, None] * x + along_y[:, None, None] * y) / (1.5 * size)
    first = DULL + (1 - 2 * DULL) * u[:, 1:4]
    second = DULL + (1 - 2 * DULL) * u[:, 4:7]
    canvas = first[:, None, None] + blend[..., None] * (second - first)[:, None, None]
    for spot in np.split(u[:, 7:], SPOTS, axis=1):
        left, down = ((spot[:, i, None, None] - 0.5) * size for i in range(2))
        distance = np.sqrt((x - left) ** 2 + (y - down) ** 2)
        canvas = paint(canvas, distance - (0.04 + 0.07 * spot[:, 2, None, None]) * size, spot[:, 3:6])
    return canvas


def foreground(canvas: np.ndarray, u: np.ndarray, x: np.ndarray, y: np.ndarray, colour: str, shape: str) -> np.ndarray:
    """Draw the class's shape over the backdrop.

    Args:
        canvas: [B, S, S, 3].
        u: uniform draws [B, 7]: size, place (2), tilt and tint (3).
        x, y: pixel centres [1, S, S], 0 in the middle of the image.
        colour, shape: keys of `COLOURS` and `SHAPES`.

    Returns:
        float32 [B, S, S, 3].
    """
    size = x.shape[-1]
    radius = (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[:, 0, None, None]) * size
    room = ROOM * (size / 2 - radius)
    x = x - (2 * u[:, 1, None, None] - 1) * room
    y = y - (2 * u[:, 2, None, None] - 1) * room
    slope = TILT * (2 * u[:, 3, None, None] - 1)
    cosine = 1 / np.sqrt(1 + slope * slope)
    sine = slope * cosine
    distance = SHAPES[shape]((cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius) * radius
    tinted = np.array(COLOURS[colour], np.float32) + TINT * (2 * u[:, 4:7] - 1)
    return paint(canvas, distance, tinted)


def draw_images(class_index: int, count: int, seed: int, split: str) -> np.ndarray:
    """Draw images of one class; the first n are the same for any count.

    Args:
        class_index: of `PAIRS`.
        count: B, how many.
        seed: of the whole set.
        split: one of `SPLITS`; they share no draws.

    Returns:
        uint8 [B, S, S, 3].
    """
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), class_index])
    layout, grain = (np.random.default_rng(child) for child in entropy.spawn(2))
    u = layout.random((count, DRAWS), np.float32)  # row-wise: a larger count only adds rows
    centres = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    x, y = np.broadcast_arrays(centres[None, None, :], centres[None, :, None])  # [1, S, S] both
    canvas = foreground(backdrop(u[:, 7:], x, y), u[:, :7], x, y, *PAIRS[class_index])
    noise = grain.random((count, SIZE, SIZE, 3, 2), np.float32)
    canvas += NOISE * (noise[..., 0] + noise[..., 1] - 1)
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def read_synthetic() -> Parts:
    """Draw the small set of the demo, as training images, test images and class names."""
    parts = []
    for split in SPLITS:
        images = [draw_images(k, SYNTHETIC[split], 0, split) for k in range(len(PAIRS))]
        parts.append(LabelledImages(np.concatenate(images), np.repeat(np.arange(len(PAIRS)), SYNTHETIC[split])))
    return *parts, [" ".join(pair) for pair in PAIRS]
