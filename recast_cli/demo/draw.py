"""Draw the demo's images: the small image folders of two tasks, and what its model was pretrained on.

Every image is a figure of one pattern on a ground of another, in random colours and poses, with pixel noise. All
random choices come from a seeded NumPy generator, so one seed gives the same pixels every time.

The demo's tasks ask for what pretraining had no name for: ``textures`` are grounds of patterns that it never drew,
``inks`` are finer shades than its hues, in letters that it never drew. Both are noisier than anything in it. No class
is the mirror image of another, so horizontal flips are a safe augmentation.
"""

import colorsys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.floating]
T = TypeVar("T")
Strokes = list[Array]  # each an [n, 2] array of (x, y) points, x to the right and y downwards, within [-1, 1]

# ---------------------------------------------------------------------------------------------------------------------
# Figures: closed outlines that are filled, and open strokes that are drawn with a pen.


def _points(*pairs: tuple[float, float]) -> Array:
    """Points of one outline or stroke, shape [n, 2]."""
    return np.array(pairs, dtype=float)


def _arc(x: float, y: float, radius: float, start: float, end: float) -> Array:
    """An arc of 16 points around (x, y); angles in degrees, clockwise from the right. Shape [16, 2]."""
    angle = np.radians(np.linspace(start, end, 16))
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def _star(corners: int, inner: float) -> Array:
    """A star with one corner up, its notches at this share of the radius; cos(pi / corners) makes it a polygon."""
    angle = np.pi * np.arange(2 * corners) / corners - np.pi / 2
    radius = np.where(np.arange(2 * corners) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_TURN = np.linspace(0, 2 * np.pi, 32)
_LOBES = -(13 * np.cos(_TURN) - 5 * np.cos(2 * _TURN) - 2 * np.cos(3 * _TURN) - np.cos(4 * _TURN)) / 16

OUTLINES: dict[str, Array] = {
    "disc": _arc(0, 0, 0.9, 0, 360),
    "square": _points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": _star(3, np.cos(np.pi / 3)),
    "pentagon": _star(5, np.cos(np.pi / 5)),
    "star": _star(5, 0.42),
    "sparkle": _star(4, 0.35),
    "crescent": np.concatenate([_arc(0, 0, 1, 40, 320), _arc(0.45, 0, 0.72, 295, 65)]),
    "half disc": _arc(0, -0.45, 1, 0, 180),
    "heart": np.stack([np.sin(_TURN) ** 3, _LOBES], axis=1),
    "arrow": _points((0, -1), (0.9, 0), (0.35, 0), (0.35, 1), (-0.35, 1), (-0.35, 0), (-0.9, 0)),
}

SYMBOLS: dict[str, Strokes] = {
    "ring": [_arc(0, 0, 0.8, 0, 360)],
    "plus": [_points((0, -0.9), (0, 0.9)), _points((-0.9, 0), (0.9, 0))],
    "one": [_points((-0.4, -0.5), (0.1, -1), (0.1, 1)), _points((-0.4, 1), (0.6, 1))],
    "two": [_points(*_arc(0, -0.45, 0.55, 190, 390).tolist(), (-0.6, 1), (0.6, 1))],
    "three": [_arc(0, -0.5, 0.5, 200, 450), _arc(0, 0.5, 0.5, 270, 520)],
    "four": [_points((0.3, 1), (0.3, -1), (-0.7, 0.4), (0.8, 0.4))],
    "six": [_points((0.4, -1), *_arc(0, 0.4, 0.6, 190, 550).tolist())],
    "seven": [_points((-0.6, -1), (0.6, -1), (-0.1, 1))],
}

LETTERS: dict[str, Strokes] = {
    "A": [_points((-0.7, 1), (0, -1), (0.7, 1)), _points((-0.4, 0.25), (0.4, 0.25))],
    "E": [_points((0.6, -1), (-0.6, -1), (-0.6, 1), (0.6, 1)), _points((-0.6, 0), (0.4, 0))],
    "F": [_points((0.6, -1), (-0.6, -1), (-0.6, 1)), _points((-0.6, 0), (0.4, 0))],
    "H": [_points((-0.6, -1), (-0.6, 1)), _points((0.6, -1), (0.6, 1)), _points((-0.6, 0), (0.6, 0))],
    "K": [_points((-0.6, -1), (-0.6, 1)), _points((0.6, -1), (-0.6, 0.1), (0.6, 1))],
    "M": [_points((-0.8, 1), (-0.7, -1), (0, 0.3), (0.7, -1), (0.8, 1))],
    "T": [_points((-0.8, -1), (0.8, -1)), _points((0, -1), (0, 1))],
    "Y": [_points((-0.7, -1), (0, 0), (0.7, -1)), _points((0, 0), (0, 1))],
}


def _mask(rng: np.random.Generator, size: int, name: str) -> Array:
    """One figure in a random pose, as coverage in [0, 1], shape [size, size]."""
    strokes = [OUTLINES[name]] if name in OUTLINES else (SYMBOLS | LETTERS)[name]
    pen = rng.uniform(0.3, 0.5)  # the width of a stroke, in units of half the figure's height
    scale = rng.uniform(0.3, 0.42)  # half the figure's height, in units of the image's side
    angle = np.radians(rng.uniform(-20, 20))
    pose = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    pose = scale * np.array([[rng.uniform(0.75, 1.1), rng.uniform(-0.2, 0.2)], [0, 1]]) @ pose
    centre = 0.5 + rng.uniform(-1, 1, size=2) * (0.5 - scale)
    canvas = Image.new("L", (2 * size, 2 * size))  # drawn twice as large and averaged down, for smooth edges
    draw = ImageDraw.Draw(canvas)
    for stroke in strokes:
        jitter = rng.uniform(-0.06, 0.06, size=stroke.shape) if len(stroke) < 8 else 0.0  # arcs stay smooth
        corners = [tuple(p) for p in (2 * size * (centre + (stroke + jitter) @ pose)).tolist()]
        if name in OUTLINES:
            draw.polygon(corners, fill=255)
        else:
            draw.line(corners, fill=255, width=max(2, round(2 * size * scale * pen)), joint="curve")
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=float) / 255


# ---------------------------------------------------------------------------------------------------------------------
# Patterns: functions of two coordinates counted in periods, giving values in [0, 1].


def _step(value: Array) -> Array:
    """A soft threshold at 0: 0 well below it, 1 well above."""
    return np.clip(0.5 + 3 * value, 0, 1)


def _wave(phase: Array) -> Array:
    return np.sin(2 * np.pi * phase)


def _centred(x: Array) -> Array:
    """Signed distance to the middle of the own period, in [-0.5, 0.5)."""
    return x - np.floor(x) - 0.5


def _bricks(x: Array, y: Array) -> Array:
    shifted = x / 2 + 0.5 * (np.floor(y) % 2)
    return _step(np.maximum(np.abs(_centred(y)) - 0.36, 2 * (np.abs(_centred(shifted)) - 0.43)))


def _scales(x: Array, y: Array) -> Array:
    """Rows of discs half a period apart, each row laid over the one above it and shifted by half a disc."""
    row = np.floor(2 * y) + 1
    own = np.hypot(_centred(x + 0.5 * (row % 2)), row / 2 - y)
    above = np.hypot(_centred(x + 0.5 * ((row - 1) % 2)), (row - 1) / 2 - y)
    return _step(np.where(own < 0.5, own, above) - 0.36)


def _honeycomb(x: Array, y: Array) -> Array:
    """Hexagons around the points of a triangular lattice, which is two rectangular lattices."""

    def hexagon(u: Array, v: Array) -> Array:
        u, v = np.abs(_centred(u)), np.sqrt(3) * np.abs(_centred(v))
        return np.maximum(u, u / 2 + v * np.sqrt(3) / 2)  # 0.5 on the wall between two cells

    return _step(np.minimum(hexagon(x, y / np.sqrt(3)), hexagon(x + 0.5, y / np.sqrt(3) + 0.5)) - 0.4)


def _crosses(x: Array, y: Array) -> Array:
    a, b = np.abs(_centred(x)), np.abs(_centred(y))
    return _step(np.minimum(0.38 - np.maximum(a, b), 0.14 - np.minimum(a, b)))


def _basket(x: Array, y: Array) -> Array:
    level = (np.floor(x) + np.floor(y)) % 2 == 0
    return _step(np.where(level, _wave(2 * y), _wave(2 * x)))


Pattern = Callable[[Array, Array], Array]

FILLS: dict[str, Pattern] = {
    "plain": lambda x, y: 0.25 + 0.1 * _wave(x / 8),
    "upright stripes": lambda x, y: _step(_wave(x)),
    "level stripes": lambda x, y: _step(_wave(y)),
    "slanted stripes": lambda x, y: _step(_wave((x + y) / np.sqrt(2))),
    "checks": lambda x, y: _step(_wave(x) * _wave(y)),
    "dots": lambda x, y: _step(0.32 - np.hypot(_centred(x), _centred(y))),
    "grid": lambda x, y: _step(np.maximum(np.abs(_centred(x)), np.abs(_centred(y))) - 0.36),
    "rings": lambda x, y: _step(_wave(np.hypot(x, y))),
}

TEXTURES: dict[str, Pattern] = {
    "basket": _basket,
    "bricks": _bricks,
    "crosses": _crosses,
    "honeycomb": _honeycomb,
    "scales": _scales,
    "triangles": lambda x, y: _step(1 - (y - np.floor(y)) - 2 * np.abs(_centred(x))),
    "waves": lambda x, y: _step(_wave(y + 0.3 * _wave(x / 2))),
    "zigzag": lambda x, y: _step(_wave(y + 1.2 * np.abs(_centred(x / 2)))),
}


def _pattern(rng: np.random.Generator, size: int, pattern: Pattern, periods: tuple[float, float]) -> Array:
    """A pattern at a random scale (``periods`` across the image), rotation and shift, shape [size, size]."""
    angle = np.radians(rng.uniform(-15, 15))
    count = rng.uniform(*periods)
    y, x = np.mgrid[:size, :size] * (count / size) - count / 2
    right, down = rng.uniform(-0.5, 0.5, size=2)
    return pattern(np.cos(angle) * x + np.sin(angle) * y + right, np.cos(angle) * y - np.sin(angle) * x + down)


# ---------------------------------------------------------------------------------------------------------------------
# Images

INKS = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "violet", "purple", "pink")
FIGURES = (*OUTLINES, *SYMBOLS)


def _inks(rng: np.random.Generator, hue: float, dark: bool) -> Array:
    """Two shades of a hue (in turns of the colour wheel), both dark or both light; shape [2, 3] in [0, 1]."""
    light = rng.uniform(0.08, 0.28) if dark else rng.uniform(0.52, 0.72)
    saturation = rng.uniform(0.5, 1.0)
    return np.array([colorsys.hls_to_rgb(hue, light + step, saturation) for step in (0.0, 0.22)])


def _mix(amount: Array, inks: Array) -> Array:
    """Blend two colours [2, 3] by amounts [h, w] in [0, 1]; shape [h, w, 3]."""
    return inks[0] + amount[..., None] * (inks[1] - inks[0])


def draw_scene(
    rng: np.random.Generator,
    size: int,
    figure: str,
    fill: Pattern,
    ground: Pattern,
    hue: float,
    spread: float = 0.0,
    noise: tuple[float, float] = (0.0, 0.08),
) -> NDArray[np.uint8]:
    """A figure of one pattern on a ground of another, uint8 [size, size, 3].

    ``hue`` is the figure's colour and ``spread`` the most it is off by, both in turns of the colour wheel; the ground's
    colour is random. ``noise`` bounds the standard deviation of the pixel noise, in units of the brightness range.
    """
    dark = rng.random() < 0.5
    inks = _inks(rng, hue + rng.uniform(-spread, spread), dark)
    paper = _inks(rng, rng.random(), not dark)
    behind = _mix(_pattern(rng, size, ground, (4, 7)), paper)
    front = _mix(_pattern(rng, size, fill, (5, 9)), inks)
    mask = _mask(rng, size, figure)[..., None]
    image = behind + mask * (front - behind)
    image += rng.normal(0, rng.uniform(*noise), size=image.shape)
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)


def _one_of(rng: np.random.Generator, values: Iterable[T]) -> T:
    values = list(values)
    return values[rng.integers(len(values))]


def _texture(rng: np.random.Generator, size: int, name: str) -> NDArray[np.uint8]:
    """The named texture, in any colours, behind any figure of the pretraining images."""
    figure, fill = _one_of(rng, FIGURES), _one_of(rng, FILLS.values())
    return draw_scene(rng, size, figure, fill, TEXTURES[name], hue=rng.random(), noise=(0.12, 0.12))


def _ink(rng: np.random.Generator, size: int, name: str) -> NDArray[np.uint8]:
    """Any letter in the named ink."""
    letter, fill, ground = _one_of(rng, LETTERS), _one_of(rng, FILLS.values()), _one_of(rng, FILLS.values())
    hue = INKS.index(name) / len(INKS)
    return draw_scene(rng, size, letter, fill, ground, hue, spread=0.35 / len(INKS), noise=(0.08, 0.08))


TASKS: dict[str, tuple[tuple[str, ...], Callable[[np.random.Generator, int, str], NDArray[np.uint8]]]] = {
    "inks": (INKS, _ink),
    "textures": (tuple(TEXTURES), _texture),
}


def draw_task(name: str, folder: str | Path, per_class: int = 150, size: int = 64, seed: int = 0) -> None:
    """Draw one of ``TASKS`` as an image folder: ``<folder>/<class>/<nnn>.png``, ``size`` pixels square."""
    classes, draw = TASKS[name]
    for index, label in enumerate(classes):
        rng = np.random.default_rng((seed, index))
        target = Path(folder) / label
        target.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            Image.fromarray(draw(rng, size, label)).save(target / f"{number:03d}.png")
