"""Drawing a tissue model as an H&E image.

Two stains absorb light by Beer and Lambert's law, channel by channel:
I = I₀ exp(−(c_H v_H + c_E v_E)), where c are concentrations and v the stains' optical densities
(Ruifrok & Johnston 2001). The slide determines v, I₀ and the stains' strength, the tissue c at
every pixel. A pixel depends on its position on the slide alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from stflow_graph.simulation.fields import STATES, STEP
from stflow_graph.simulation.structures import NUCLEI
from stflow_graph.simulation.tissue import RngFor, Tissue

_TEXTURE = 512  # px; textures repeat with this period
_STAMP = 33  # px, edge of a nucleus stamp
_TURNS, _SHAPES = 16, 5
_FAT_CELLS = 36

# optical densities of haematoxylin and eosin
_STAINS = {
    "usual": [[0.66, 0.69, 0.30], [0.10, 0.87, 0.42]],
    "other": [[1.20, 0.88, 0.22], [0.06, 0.52, 0.52]],
}
STAINS = tuple(_STAINS)
# concentrations of haematoxylin and eosin by region: tumour, stroma, immune; adipose is drawn
_HAEMATOXYLIN = (0.20, 0.05, 0.17)
_EOSIN = (0.36, 0.50, 0.28)
_FIBRE = (0.04, 0.15, 0.04)


@dataclasses.dataclass(frozen=True)
class Stain:
    """A slide's stain.

    Attributes:
        haematoxylin: ``[3]`` optical density of R, G, B at concentration 1.
        eosin: ``[3]`` the same.
        light: ``[3]`` intensity of the empty slide, at most 255.
    """

    haematoxylin: np.ndarray
    eosin: np.ndarray
    light: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, kind: str = "usual") -> Stain:
        """Return a stain with small variation of colours, and of strengths by a sixth.

        Args:
            rng: the slide's.
            kind: ``"usual"``, or ``"other"``: of another laboratory, bluer and stronger
                haematoxylin, eosin towards orange.
        """
        strength = np.exp(rng.normal(0, (0.13, 0.17)))
        vectors = np.array(_STAINS[kind])
        strength = strength * np.linalg.norm(vectors, axis=1).round(1)
        vectors = np.abs(vectors + rng.normal(0, 0.03, (2, 3)))
        vectors *= (strength / np.linalg.norm(vectors, axis=1))[:, None]
        light = np.array([241, 238, 242]) + rng.normal(0, 1.5, 3)
        return cls(
            vectors[0].astype(np.float32),
            vectors[1].astype(np.float32),
            np.clip(light, 0, 255).astype(np.float32),
        )

    def image(self, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
        """Return ``[H, W, 3]`` uint8 for concentrations ``[H, W]``."""
        density = haematoxylin[..., None] * self.haematoxylin + eosin[..., None] * self.eosin
        return (self.light * np.exp(-density) + np.float32(0.5)).astype(np.uint8)


class Painter:
    """Draws windows of one slide.

    Args:
        tissue: the tissue to draw.
        rng_for: returns a fresh generator for a purpose.
        stain: its kind, see :meth:`Stain.random`.
    """

    def __init__(self, tissue: Tissue, rng_for: RngFor, stain: str = "usual") -> None:
        self._tissue = tissue
        self._stain = Stain.random(rng_for("stain"), stain)
        rng = rng_for("texture")
        self._fibre = _texture(rng, (2.2, 24.0)) + 0.7 * _texture(rng, (5.0, 60.0))
        self._grain = 0.6 * _texture(rng, (2.0, 2.0)) + 0.8 * _texture(rng, (9.0, 9.0))
        self._fat = _fat(rng)
        self._stamps = _stamps(rng_for("stamps"))
        collagen = tissue.states[STATES.index("collagen")]
        self._fields = np.concatenate(
            [tissue.regions, collagen[None], tissue.depth_inside[None], tissue.warp]
        ).astype(np.float32)
        nuclei = tissue.nuclei
        turn = np.floor(nuclei.angle % np.pi / np.pi * _TURNS).astype(int) % _TURNS
        shape = np.floor(nuclei.variant * _SHAPES).astype(int)
        self._stamp_of = (nuclei.kind * _TURNS + turn) * _SHAPES + shape
        self._nuclei = cKDTree(nuclei.xy.reshape(-1, 2))
        self._openings = cKDTree(tissue.openings.xy.reshape(-1, 2))
        self._widest = 1.8 * tissue.openings.radius.max(initial=0)

    def draw(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Return the window ``[height, width, 3]`` uint8 whose first pixel is (left, top)."""
        x, y = np.arange(left, left + width), np.arange(top, top + height)
        *shares, adipose, collagen, inside, along, across = self._interpolate(x, y)
        fibre, grain = self._fibres(x, y, along, across), _tiled(self._grain, x, y)
        haematoxylin, eosin = np.zeros((2, height, width), dtype=np.float32)
        for share, h, e, streak in zip(shares, _HAEMATOXYLIN, _EOSIN, _FIBRE, strict=True):
            haematoxylin += h * share
            eosin += share * (e + streak * fibre)
        haematoxylin *= 1 + 0.25 * grain
        eosin *= np.exp(0.32 * collagen) * (1 + 0.16 * grain)
        fat = _tiled(self._fat, x, y)
        # fat cells keep their shape at a region's edge: further inside, more of them are white
        full = np.clip(6 * (adipose - 0.5) + 0.8 * grain * (1 - adipose), 0, 1)
        eosin += full * (fat - eosin)
        haematoxylin *= 1 - full * (1 - 0.3 * fat)
        self._open(haematoxylin, eosin, left, top)
        self._stamp(haematoxylin, left, top)
        tissue = np.clip((inside + 6 * grain) / 5 + 0.5, 0, 1)
        return self._stain.image(
            tissue * np.maximum(haematoxylin, 0), tissue * np.maximum(eosin, 0)
        )

    def _interpolate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return every field at the pixels, ``[C, height, width]``, bilinear."""
        size = self._fields.shape
        row = np.clip(y // STEP, 0, size[1] - 2)
        column = np.clip(x // STEP, 0, size[2] - 2)
        down = (np.clip(y / STEP - row, 0, 1)).astype(np.float32)[:, None]
        across = (np.clip(x / STEP - column, 0, 1)).astype(np.float32)
        first, last = column[0], column[-1] + 2
        block = self._fields[:, :, first:last]
        rows = block[:, row] * (1 - down) + block[:, row + 1] * down
        column = column - first
        return rows[:, :, column] * (1 - across) + rows[:, :, column + 1] * across

    def _fibres(
        self, x: np.ndarray, y: np.ndarray, along: np.ndarray, across: np.ndarray
    ) -> np.ndarray:
        """Return the fibres' texture where the coordinates are displaced ``along`` and across."""
        sine, cosine = np.sin(self._tissue.fibre_angle), np.cos(self._tissue.fibre_angle)
        along = along + (x * cosine + (y * sine)[:, None]).astype(np.float32)
        across = across + ((y * cosine)[:, None] - x * sine).astype(np.float32)
        row, column = np.floor(across), np.floor(along).astype(np.int32) & (_TEXTURE - 1)
        between = across - row
        row = row.astype(np.int32)
        # linear across the fibres, where the texture is fine; the nearest pixel along them
        first, second = (self._fibre[(row + step) & (_TEXTURE - 1), column] for step in (0, 1))
        return first + between * (second - first)

    def _open(self, haematoxylin: np.ndarray, eosin: np.ndarray, left: int, top: int) -> None:
        """Draw the walls of glands and vessels, and empty their lumens."""
        openings = self._tissue.openings
        for i in _near(self._openings, left, top, eosin.shape, self._widest):
            x, y = openings.xy[i] - (left, top)
            reach = int(1.8 * openings.radius[i])
            rows = slice(max(0, y - reach), max(0, y + reach + 1))
            columns = slice(max(0, x - reach), max(0, x + reach + 1))
            part = eosin[rows, columns]
            if part.size == 0:
                continue
            v = np.arange(rows.start, rows.start + part.shape[0])[:, None] - y
            u = np.arange(columns.start, columns.start + part.shape[1])[None] - x
            distance = np.hypot(u, v) + 1e-6
            outline = openings.outline(i, u / distance, v / distance)
            wall = np.clip((outline - distance) / 2 + 0.5, 0, 1)
            empty = np.clip((openings.lumen[i] * outline - distance) / 2.5 + 0.5, 0, 1)
            target = (0.24, 0.5) if openings.gland[i] else (0.05, 0.75)
            for canvas, value in zip((haematoxylin, eosin), target, strict=True):
                piece = canvas[rows, columns]
                piece += wall * (value - piece)
                piece *= 1 - 0.97 * empty

    def _stamp(self, haematoxylin: np.ndarray, left: int, top: int) -> None:
        """Draw the nuclei."""
        half = _STAMP // 2
        canvas = np.pad(haematoxylin, _STAMP)
        near = _near(self._nuclei, left, top, haematoxylin.shape, half)
        corners = self._tissue.nuclei.xy[near] - (left, top) + (_STAMP - half)
        stamps = self._stamp_of[near].tolist()
        for (x, y), stamp in zip(corners.tolist(), stamps, strict=True):
            part = canvas[y : y + _STAMP, x : x + _STAMP]
            np.maximum(part, self._stamps[stamp], out=part)
        haematoxylin[...] = canvas[_STAMP:-_STAMP, _STAMP:-_STAMP]


def _near(tree: cKDTree, left: int, top: int, shape: tuple[int, ...], margin: float) -> np.ndarray:
    """Return the objects within ``margin`` of a window, in their order on the slide."""
    if tree.n == 0:
        return np.zeros(0, dtype=np.int64)
    size = np.array(shape[::-1])
    centre = np.array([left, top]) + (size - 1) / 2
    reach = (size - 1) / 2 + margin
    around = np.array(tree.query_ball_point(centre, reach.max(), p=np.inf, return_sorted=True), int)
    return around[(np.abs(tree.data[around] - centre) <= reach).all(axis=1)]


def _tiled(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return texture[np.ix_(y & (_TEXTURE - 1), x & (_TEXTURE - 1))]


def _texture(rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    """Return smooth noise ``[512, 512]`` of mean 0 and deviation 1 that repeats."""
    noise = gaussian_filter(rng.standard_normal((_TEXTURE, _TEXTURE)), sigma, mode="wrap")
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def _fat(rng: np.random.Generator) -> np.ndarray:
    """Return the eosin of fat: thin membranes between round empty cells, repeating."""
    side = int(np.sqrt(_FAT_CELLS))
    y, x = np.mgrid[:side, :side] * (_TEXTURE / side)
    points = np.stack([x + (y // (_TEXTURE / side) % 2) * _TEXTURE / side / 2, y], axis=-1)
    points = (points.reshape(-1, 2) + rng.normal(0, 16, (side * side, 2))) % _TEXTURE
    pixels = np.moveaxis(np.mgrid[:_TEXTURE, :_TEXTURE][::-1], 0, -1)
    distance, _ = cKDTree(points, boxsize=_TEXTURE).query(pixels, k=3)
    # between the nearest two cells the gap closes; where three meet there is a wedge
    gap = distance[..., 1] - distance[..., 0] + 0.08 * (distance[..., 2] - distance[..., 0])
    return (0.42 * np.exp(-((gap / 4.5) ** 2))).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Appearance of a kind of nucleus: half axes in px, spread of sizes, rim, inside, chromatin."""

    long: float
    short: float
    spread: float
    rim: float
    inside: float
    clumps: float


_LOOKS = {
    "tumour": _Look(9.0, 7.0, 0.16, 1.05, 0.72, 0.22),
    "epithelial": _Look(9.0, 5.0, 0.10, 1.15, 0.95, 0.15),
    "lymphocyte": _Look(5.8, 5.2, 0.09, 1.50, 1.45, 0.15),
    "spindle": _Look(11.5, 2.8, 0.18, 1.20, 1.15, 0.08),
}


def _stamps(rng: np.random.Generator) -> np.ndarray:
    """Return haematoxylin of nuclei, ``[kinds * turns * shapes, 33, 33]`` float32."""
    looks = [_LOOKS[kind] for kind in NUCLEI for _ in range(_TURNS * _SHAPES)]
    n = len(looks)
    turn = np.tile(np.repeat(np.arange(_TURNS), _SHAPES), len(NUCLEI)) * (np.pi / _TURNS)
    long, short, spread, rim, inside, clumps = (
        column[:, None, None] for column in np.array([dataclasses.astuple(k) for k in looks]).T
    )
    half = _STAMP // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    cosine, sine = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    along, across = u * cosine + v * sine, v * cosine - u * sine
    grow = np.exp(spread * rng.normal(size=(2, n, 1, 1)))
    bend = rng.normal(0, 0.006, (n, 1, 1)) * along**2
    angle = np.arctan2(v, u)[None]
    lobe = 1 + rng.normal(0, 0.06, (n, 1, 1)) * np.cos(3 * angle + 6 * rng.random((n, 1, 1)))
    a, b = np.minimum(long * grow[0], half - 2), short * grow[1]
    radius = np.hypot(along / a, (across + bend) / b) / lobe
    edge = np.clip((1 - radius) * b / 1.6 + 0.5, 0, 1)  # a soft edge of 1.6 px
    noise = gaussian_filter(rng.standard_normal((n, _STAMP, _STAMP)), (0, 1.3, 1.3))
    chromatin = 1 + clumps * noise / noise.std()
    return (edge * (inside + (rim - inside) * radius**3) * chromatin).astype(np.float32)
