"""The fabric of a garment: its colour, and a pattern that is fixed to the body rather than to the picture."""

from __future__ import annotations

from math import cos, sin

import numpy as np
from PIL import Image, ImageDraw

from train.data.looks import Look, shade

CHEST_DEPTH = 0.078  # how far the print on a chest lies before the body's axis, in heights


def weave(look: Look, yaw: float, size: tuple[int, int], chest: tuple[float, float], height: float,
          brightness: float = 1.0) -> Image.Image:  # fmt: skip
    """Makes a rectangle of the upper garment's fabric.

    Args:
        look: whose garment.
        yaw: the direction of the body in radians; only a print and a sash move with it.
        size: (width, height) of the rectangle in pixels.
        chest: where the middle of the shoulders lies, in pixels of the rectangle; the pattern starts there.
        height: the person's standing height in pixels.
        brightness: 1 in the light, less on the far side of the body.

    Returns:
        An RGB image of ``size``.
    """
    width, tall = size
    x0, y0 = chest
    colour, second = shade(look.upper_colour, brightness), shade(look.second_colour, brightness)
    fabric = Image.new("RGB", size, colour)
    pen = ImageDraw.Draw(fabric)
    period = look.pattern_period * height
    columns = _grid(x0, period, width)
    rows = _grid(y0, period, tall)
    toward = 1 if cos(yaw) > 0 else -1

    if look.pattern == "hoops":
        for y in rows:
            pen.rectangle((0, y, width, y + 0.48 * period), second)
    elif look.pattern == "pinstripes":
        for x in columns:
            pen.rectangle((x - 0.2 * period, 0, x + 0.2 * period, tall), second)
    elif look.pattern == "checks":
        for i, y in enumerate(rows):
            for x in columns[i % 2 :: 2]:
                pen.rectangle((x, y, x + period, y + period), second)
    elif look.pattern == "dots":
        radius = 0.27 * period
        for i, y in enumerate(rows):
            for x in columns + (i % 2) * period / 2:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), second)
    elif look.pattern == "halves":
        pen.rectangle((0, y0 + 0.14 * height, width, y0 + height), second)
    elif look.pattern == "band":
        pen.rectangle((0, y0 + 0.10 * height, width, y0 + 0.17 * height), second)
    elif look.pattern == "sash":
        lean, half = toward * 0.18 * height, 0.04 * height
        top, bottom = y0 - 0.02 * height, y0 + 0.40 * height
        corners = [(-lean - half, top), (-lean + half, top), (lean + half, bottom), (lean - half, bottom)]
        pen.polygon([(x0 + x, y) for x, y in corners], second)
    elif look.pattern == "print":
        x = x0 + toward * sin(yaw) * CHEST_DEPTH * look.girth * height
        half = 0.062 * height * max(0.25, abs(cos(yaw)))
        pen.rectangle((x - half, y0 + 0.09 * height, x + half, y0 + 0.185 * height), second)
    return fabric


def _grid(origin: float, period: float, length: int) -> np.ndarray:
    """Every multiple of ``period`` from ``origin`` that may touch 0..length, from the same even multiple on."""
    first = -2 * int(origin / period / 2) - 2
    return origin + period * np.arange(first, int((length - origin) / period) + 2)
