"""How a synthetic person is photographed: cameras and their scenes, what stands in the way, how the box is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from train.data.looks import Colour, Look, shade
from train.data.pedestrian import draw_person
from train.data.skeleton import draw_pose

SUPERSAMPLING = 3  # everything is drawn this much larger, then reduced
SCENES = ("street", "park", "brick", "plaza", "parking", "market")


@dataclass(frozen=True)
class Camera:
    """One camera: what it looks at, from which side people pass it, and how it sees colour."""

    number: int
    scene: str
    yaw: float  # the usual direction of the people it sees, in radians
    gain: tuple[float, float, float]
    gamma: float
    saturation: float
    blur: float  # pixels of a 128-pixel-high image
    noise: float  # standard deviation, grey levels
    seed: int


@dataclass(frozen=True)
class Box:
    """Where the person stands in the cut box, as fractions of the box's height (and width, for ``centre``)."""

    kind: str
    height: float
    ground: float
    centre: float


def draw_camera(seed: int, number: int) -> Camera:
    """Draws the lasting properties of a camera, from 1 upward."""
    rng = np.random.default_rng([seed, 3, number])
    warmth = rng.uniform(-0.13, 0.13)
    green = rng.uniform(-0.06, 0.06)
    level = rng.uniform(0.82, 1.15)
    return Camera(
        number=number,
        scene=SCENES[(number - 1) % len(SCENES)],
        yaw=float((number - 1) * pi / 3 + rng.uniform(-0.3, 0.3)),
        gain=(float(level * (1 + warmth)), float(level * (1 + green)), float(level * (1 - warmth))),
        gamma=float(rng.uniform(0.8, 1.3)),
        saturation=float(rng.uniform(0.65, 1.1)),
        blur=float(rng.uniform(0.15, 0.85)),
        noise=float(rng.uniform(2.0, 7.0)),
        seed=seed,
    )


def draw_box(rng: np.random.Generator) -> Box:
    """Draws how a detector cut the box: mostly well, sometimes high, low or too loose."""
    kind = str(rng.choice(("good", "no feet", "no head", "loose"), p=(0.55, 0.17, 0.11, 0.17)))
    if kind == "good":
        height, ground = rng.uniform(0.87, 0.97), rng.uniform(0.955, 0.99)
    elif kind == "no feet":
        height = rng.uniform(1.08, 1.4)
        ground = height + rng.uniform(0.01, 0.07)
    elif kind == "no head":
        height = rng.uniform(1.02, 1.28)
        ground = rng.uniform(0.93, 0.99)
    else:
        height = rng.uniform(0.62, 0.82)
        ground = rng.uniform(height + 0.02, 0.99)
    return Box(kind, float(height), float(ground), float(rng.normal(0.5, 0.055)))


def photograph(look: Look | None, camera: Camera, rng: np.random.Generator, height: int, width: int, *,
               box: Box | None = None, passers_by: tuple[Look, ...] = ()) -> Image.Image:  # fmt: skip
    """Takes one picture.

    Args:
        look: the person, or None for an empty box.
        camera: who takes the picture.
        rng: decides pose, box, light, and what stands in the way.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        box: how the box is cut; drawn when None.
        passers_by: other people, one of whom may stand behind or in front.

    Returns:
        An RGB image of ``width`` x ``height``.
    """
    tall, wide = height * SUPERSAMPLING, width * SUPERSAMPLING
    box = box or draw_box(rng)
    canvas = _cut_background(camera, rng, tall, wide)
    yaw = camera.yaw + rng.normal(0, 0.55) + (pi if rng.random() < 0.2 else 0.0)
    company = rng.random() if passers_by else 1.0
    if company < 0.13:  # someone behind, a little farther away
        size = box.height * rng.uniform(0.72, 0.9)
        _draw_passer_by(canvas, passers_by, rng, yaw, box.ground - 0.05, size)
    if look is not None:
        draw_person(canvas, look, draw_pose(rng, yaw), box.centre * wide, box.ground * tall, box.height * tall)
    if 0.13 <= company < 0.22:  # someone in front, a little nearer
        size = box.height * rng.uniform(1.0, 1.12)
        _draw_passer_by(canvas, passers_by, rng, yaw, box.ground + 0.06, size)
    elif rng.random() < 0.20:
        _draw_obstacle(canvas, rng)
    return _develop(canvas.reduce(SUPERSAMPLING), camera, rng)


def _develop(image: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """The camera's blur, saturation, white balance, gamma and noise, and the light of the moment."""
    blur = camera.blur * image.height / 128 * rng.uniform(0.7, 1.4)
    image = image.filter(ImageFilter.GaussianBlur(blur))
    light = rng.uniform(0.85, 1.15)
    grey = np.array([0.299, 0.587, 0.114])
    mix = camera.saturation * np.eye(3) + (1 - camera.saturation) * grey
    mix = mix * (np.array(camera.gain) * light)[:, None]
    image = image.convert("RGB", tuple(np.column_stack([mix, np.zeros(3)]).ravel().tolist()))
    curve = np.round(255 * (np.arange(256) / 255) ** camera.gamma).astype(int).tolist()
    pixels = np.asarray(image.point(curve * 3), dtype=np.float32)
    pixels = pixels + camera.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


# What stands in the way -----------------------------------------------------------------------------------------


def _draw_passer_by(canvas: Image.Image, people: tuple[Look, ...], rng: np.random.Generator, yaw: float,
                    ground: float, size: float) -> None:  # fmt: skip
    """Draws one of ``people`` at the left or right edge; ground and size are fractions of the box's height."""
    wide, tall = canvas.size
    look = people[int(rng.integers(len(people)))]
    side = -1 if rng.random() < 0.5 else 1
    centre = 0.5 + side * rng.uniform(0.42, 0.62)
    pose = draw_pose(rng, yaw + rng.normal(0, 1.5))
    draw_person(canvas, look, pose, centre * wide, ground * tall, size * tall)


def _draw_obstacle(canvas: Image.Image, rng: np.random.Generator) -> None:
    wide, tall = canvas.size
    pen = ImageDraw.Draw(canvas, "RGBA")
    kind = rng.choice(("pole", "bin", "bush", "rail", "bicycle"))
    left = bool(rng.random() < 0.5)
    if kind == "pole":
        x, half = rng.uniform(0.1, 0.9) * wide, rng.uniform(0.03, 0.07) * wide
        pen.rectangle((x - half, 0, x + half, tall), _grey(rng, 70, 130))
        pen.rectangle((x - half, 0, x - half * 0.4, tall), (255, 255, 255, 50))
    elif kind == "bin":
        x, half, top = (0.14 if left else 0.86) * wide, 0.2 * wide, rng.uniform(0.66, 0.8) * tall
        body = shade((66, 96, 84), rng.uniform(0.7, 1.3))
        pen.rounded_rectangle((x - half, top, x + half, tall + 9), 0.05 * wide, body)
        pen.rectangle((x - half * 1.08, top, x + half * 1.08, top + 0.025 * tall), shade(body, 0.6))
    elif kind == "bush":
        for _ in range(9):
            x = (rng.normal(0.12, 0.13) if left else rng.normal(0.88, 0.13)) * wide
            y, r = rng.uniform(0.8, 1.0) * tall, rng.uniform(0.07, 0.16) * wide
            pen.ellipse((x - r, y - r, x + r, y + r), shade((62, 92, 48), rng.uniform(0.7, 1.3)))
    elif kind == "rail":
        colour, top = _grey(rng, 90, 170), rng.uniform(0.66, 0.78) * tall
        for y in (top, top + 0.12 * tall):
            pen.rectangle((0, y, wide, y + 0.016 * tall), colour)
        for x in np.arange(rng.uniform(0, 0.3), 1.0, 0.3) * wide:
            pen.rectangle((x, top, x + 0.03 * wide, tall), shade(colour, 0.85))
    else:
        colour, r = _vivid(rng), 0.105 * tall
        x, y = (rng.uniform(0.0, 0.2) if left else rng.uniform(0.8, 1.0)) * wide, 0.885 * tall
        line = max(2, round(0.011 * tall))
        for wheel in (x - 1.15 * r, x + 1.15 * r):
            pen.ellipse((wheel - r, y - r, wheel + r, y + r), None, (30, 30, 32), line)
        saddle, head = (x - 0.5 * r, y - 1.3 * r), (x + 0.8 * r, y - 1.45 * r)
        pen.line([(x - 1.15 * r, y), (x, y), head, saddle, (x, y)], colour, line, joint="curve")
        pen.line([(x + 1.15 * r, y), head], colour, line)
        pen.line([(saddle[0] - 0.25 * r, saddle[1]), (saddle[0] + 0.25 * r, saddle[1])], (30, 30, 32), 2 * line)


# Scenes ---------------------------------------------------------------------------------------------------------


def _cut_background(camera: Camera, rng: np.random.Generator, tall: int, wide: int) -> Image.Image:
    scene = _scene(camera, tall, wide)
    x = int(rng.integers(scene.width - wide + 1))
    y = int(rng.integers(scene.height - tall + 1))
    return scene.crop((x, y, x + wide, y + tall))


@lru_cache(maxsize=64)
def _scene(camera: Camera, tall: int, wide: int) -> Image.Image:
    """The whole view of a camera, of which each box shows a part."""
    rng = np.random.default_rng([camera.seed, 4, camera.number])
    width, height = 5 * wide, round(1.25 * tall)
    image = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(image, "RGBA")
    _PAINTERS[camera.scene](pen, rng, width, height, round(height * rng.uniform(0.40, 0.55)))
    return image.filter(ImageFilter.GaussianBlur(0.012 * tall))


def _paint_street(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (168, 158, 146))
    unit = height / 10
    for x in np.arange(0.3, width / unit, 2.3) * unit:  # windows and doors
        pen.rectangle((x, 0.4 * unit, x + 1.3 * unit, horizon - unit * rng.choice((0.0, 1.6))), _grey(rng, 60, 110))
        pen.rectangle((x, 0.4 * unit, x + 1.3 * unit, 0.6 * unit), (210, 206, 198))
    pen.rectangle((0, horizon, width, horizon + 1.2 * unit), (150, 150, 150))
    pen.rectangle((0, horizon + 1.2 * unit, width, height), (104, 104, 108))
    for x in np.arange(0.0, width / unit, 2.0) * unit:
        pen.rectangle((x, height - 1.6 * unit, x + unit, height - 1.35 * unit), (214, 214, 208))


def _paint_park(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (150, 172, 160))
    unit = height / 10
    for x in rng.uniform(0, width, 22):
        trunk = rng.uniform(0.08, 0.16) * unit
        pen.rectangle((x - trunk, 0, x + trunk, horizon + 0.3 * unit), (86, 70, 56))
        for _ in range(7):
            cx, cy, r = x + rng.normal(0, 0.8) * unit, rng.uniform(-0.5, 2.2) * unit, rng.uniform(0.5, 1.0) * unit
            pen.ellipse((cx - r, cy - r, cx + r, cy + r), shade((72, 110, 62), rng.uniform(0.7, 1.25)))
    pen.rectangle((0, horizon, width, height), (104, 134, 76))
    pen.rectangle((0, horizon + 1.2 * unit, width, height - 0.7 * unit), (176, 164, 142))


def _paint_brick(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (140, 88, 72))
    row = height / 26
    for i, y in enumerate(np.arange(0, horizon, row)):
        for x in np.arange(-(i % 2) * row, width, 2 * row):
            pen.rectangle((x + 2, y + 2, x + 2 * row - 2, y + row - 2), shade((158, 98, 78), rng.uniform(0.82, 1.15)))
    pen.rectangle((0, horizon, width, height), (150, 146, 140))
    for x in np.arange(0, width, 5 * row):
        pen.line((x, horizon, x - 3 * row, height), (120, 118, 114), 3)


def _paint_plaza(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (120, 142, 158))
    unit = height / 10
    for x in np.arange(0, width / unit, 1.4) * unit:  # a glass front
        pen.rectangle((x, 0, x + 1.25 * unit, horizon), shade((134, 160, 178), rng.uniform(0.75, 1.15)))
    pen.rectangle((0, horizon, width, height), (196, 190, 180))
    for y in horizon + (height - horizon) * np.linspace(0, 1, 6) ** 1.6:
        pen.line((0, y, width, y), (164, 158, 150), 4)
    for x in np.arange(-width, 2 * width, 1.8 * unit):
        pen.line((x, height, width / 2 + (x - width / 2) * 0.6, horizon), (164, 158, 150), 3)


def _paint_parking(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (182, 190, 196))
    pen.rectangle((0, horizon - height / 8, width, horizon), (116, 130, 104))
    pen.rectangle((0, horizon, width, height), (118, 120, 124))
    unit = height / 10
    for x in np.arange(0.2, width / unit, 4.4) * unit:
        colour, y = _vivid(rng), horizon + 0.9 * unit
        pen.rounded_rectangle((x + 0.7 * unit, y - 1.9 * unit, x + 3.0 * unit, y), 0.5 * unit, shade(colour, 0.8))
        glass = (x + 0.9 * unit, y - 1.7 * unit, x + 2.8 * unit, y - 0.9 * unit)
        pen.rounded_rectangle(glass, 0.3 * unit, (70, 84, 96))
        pen.rounded_rectangle((x, y - unit, x + 3.8 * unit, y + 0.2 * unit), 0.35 * unit, colour)
        for wheel in (x + 0.9 * unit, x + 2.9 * unit):
            pen.ellipse((wheel - 0.4 * unit, y - 0.2 * unit, wheel + 0.4 * unit, y + 0.6 * unit), (32, 32, 34))
        pen.line((x - 0.3 * unit, height, x + 0.2 * unit, y + 1.2 * unit), (212, 212, 206), 6)


def _paint_market(pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, horizon: int) -> None:
    pen.rectangle((0, 0, width, horizon), (92, 88, 88))
    unit = height / 10
    for x in np.arange(0.0, width / unit, 3.2) * unit:  # stalls with striped awnings and crates
        colour = _vivid(rng)
        for k in range(6):
            stripe = colour if k % 2 else (222, 218, 210)
            pen.rectangle((x + 0.5 * k * unit, 0.6 * unit, x + 0.5 * (k + 1) * unit, 1.8 * unit), stripe)
        for k in range(4):
            left = x + (0.1 + 0.75 * k) * unit
            crate = (left, horizon - 1.3 * unit, left + 0.68 * unit, horizon - 0.2 * unit)
            pen.rectangle(crate, shade(_vivid(rng), 0.9))
    pen.rectangle((0, horizon - 0.2 * unit, width, horizon + 0.4 * unit), (96, 78, 62))
    pen.rectangle((0, horizon + 0.4 * unit, width, height), (136, 130, 124))


_PAINTERS = {
    "street": _paint_street,
    "park": _paint_park,
    "brick": _paint_brick,
    "plaza": _paint_plaza,
    "parking": _paint_parking,
    "market": _paint_market,
}


def _grey(rng: np.random.Generator, low: int, high: int) -> Colour:
    level = int(rng.integers(low, high))
    return level, level, min(255, level + 4)


def _vivid(rng: np.random.Generator) -> Colour:
    return tuple(int(v) for v in rng.integers(60, 200, 3))
