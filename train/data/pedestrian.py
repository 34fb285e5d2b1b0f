"""Draws one synthetic pedestrian: a walking skeleton, seen from any side, dressed in a look.

Lengths are fractions of the standing height. Everything is drawn larger than the image and reduced afterwards, which
is what smooths the edges.
"""

from __future__ import annotations

from math import cos, hypot, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from train.data.fabric import weave
from train.data.looks import Look, shade
from train.data.skeleton import CHIN, SHOULDER, Joint, Point, Pose, Skeleton

Fill = tuple[int, ...] | int  # a colour, perhaps with opacity, or a mask's grey

SLEEVES = {"t-shirt": "short", "vest": "none", "dress": "short"}  # the other uppers have long sleeves
HEMS = {"vest": 0.50, "t-shirt": 0.475, "shirt": 0.465, "jacket": 0.455, "hoodie": 0.45, "coat": 0.27, "dress": 0.26}
LEG_COVER = {"trousers": 2.0, "cropped": 1.55, "shorts": 0.85, "skirt": 0.0, "long skirt": 0.0}  # 1 is the knee
SKIRT_HEMS = {"skirt": 0.29, "long skirt": 0.11}


def draw_person(canvas: Image.Image, look: Look, pose: Pose, centre: float, ground: float, height: float) -> None:
    """Draws a person onto an RGB canvas.

    Args:
        canvas: the RGB image drawn on, in place.
        look: who it is.
        pose: how the person stands.
        centre: column of the body's axis, in pixels of the canvas.
        ground: row of the soles, in pixels; may lie outside the canvas, which cuts the person.
        height: standing height, in pixels.
    """
    _Figure(canvas, look, pose, centre, ground, height).draw()


class _Figure:
    """One drawing: projection, brushes, and the layers from back to front."""

    def __init__(self, canvas: Image.Image, look: Look, pose: Pose, centre: float, ground: float, height: float):
        self.canvas, self.look, self.pose = canvas, look, pose
        self.centre, self.ground, self.height = centre, ground, height
        self.pen = ImageDraw.Draw(canvas, "RGBA")
        self.body = Skeleton(look, pose, centre, ground, height)
        self._at, self._half_width = self.body.project, self.body.half_width
        self.cos, self.sin = self.body.cos, self.body.sin
        self.seen_from_behind = self.cos < -0.15
        self.near_side = -1 if self.sin > 0 else 1  # the side of the body nearer to the camera

    def draw(self) -> None:
        far, near = -self.near_side, self.near_side
        self._ground_shadow()
        if not self.seen_from_behind:
            self._hair_behind()
            self._backpack()
        if abs(self.sin) > 0.35:
            self._draw_arm(far, dim=0.8)
        self._handbag(far)
        self._draw_leg(far, dim=0.84)
        self._draw_leg(near, dim=1.0)
        self._draw_skirt()
        self._draw_torso()
        if abs(self.sin) <= 0.35:
            self._draw_arm(far, dim=0.96)
        if self.seen_from_behind:
            self._draw_head()
            self._hair_behind()
            self._backpack()
            self._draw_arm(near, dim=1.0)
        else:
            self._draw_arm(near, dim=1.0)
            self._draw_head()
        self._shoulder_bag()
        self._handbag(near)

    # Brushes -----------------------------------------------------------------------------------------------------

    def _limb(self, pen: ImageDraw.ImageDraw, start: Point, end: Point, r0: float, r1: float, fill: Fill) -> None:
        """A tapered, round-ended stroke; radii in heights."""
        r0, r1 = r0 * self.height, r1 * self.height
        length = hypot(end[0] - start[0], end[1] - start[1]) or 1.0
        nx, ny = (start[1] - end[1]) / length, (end[0] - start[0]) / length
        pen.polygon([(start[0] + nx * r0, start[1] + ny * r0), (end[0] + nx * r1, end[1] + ny * r1),
                     (end[0] - nx * r1, end[1] - ny * r1), (start[0] - nx * r0, start[1] - ny * r0)], fill)  # fmt: skip
        for (x, y), r in ((start, r0), (end, r1)):
            pen.ellipse((x - r, y - r, x + r, y + r), fill)

    def _ellipse(self, centre: Point, rx: float, ry: float, fill: Fill) -> None:
        rx, ry = rx * self.height, ry * self.height
        self.pen.ellipse((centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry), fill)

    def _outline(self, levels: list[tuple[float, float]], lean: float = 0.0) -> list[Point]:
        """A closed shape about the body's axis from (height, half width) pairs, top to bottom."""
        right = [(self._at(0, y, lean)[0] + half * self.height, self._at(0, y)[1]) for y, half in levels]
        left = [(self._at(0, y, lean)[0] - half * self.height, self._at(0, y)[1]) for y, half in levels]
        return right + left[::-1]

    def _cloth(self, mask: Image.Image, dim: float = 1.0) -> None:
        """Pastes the upper garment's fabric through a mask."""
        box = mask.getbbox()
        if box is None:
            return
        x, y = self._at(0, SHOULDER)
        fabric = weave(self.look, self.pose.yaw, (box[2] - box[0], box[3] - box[1]),
                       (x - box[0], y - box[1]), self.height, dim)  # fmt: skip
        self.canvas.paste(fabric, box, mask.crop(box))

    def _mask(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", self.canvas.size, 0)
        return mask, ImageDraw.Draw(mask)

    # Layers ------------------------------------------------------------------------------------------------------

    def _ground_shadow(self) -> None:
        self._ellipse((self.centre, self.ground), 0.16, 0.028, (0, 0, 0, 70))

    def _draw_leg(self, side: int, dim: float) -> None:
        look = self.look
        hip, knee, ankle = (self._at(*joint) for joint in self.body.legs[side])
        thigh, calf, bone = 0.062 * look.girth, 0.045 * look.girth**0.7, 0.026
        skin, cloth = shade(look.skin, 0.95 * dim), shade(look.lower_colour, dim)
        self._limb(self.pen, hip, knee, thigh * 0.92, calf, skin)
        self._limb(self.pen, knee, ankle, calf, bone, skin)
        cover = LEG_COVER[look.lower] if look.upper != "dress" else 0.0
        if cover:
            loose = 1.0 if cover > 1 else 1.1
            along = min(cover, 1.0)
            end = (hip[0] + along * (knee[0] - hip[0]), hip[1] + along * (knee[1] - hip[1]))
            self._limb(self.pen, hip, end, thigh, (thigh + along * (calf - thigh)) * loose + 0.004, cloth)
            if cover > 1:
                along = min(cover - 1.0, 0.95)
                end = (knee[0] + along * (ankle[0] - knee[0]), knee[1] + along * (ankle[1] - knee[1]))
                self._limb(self.pen, knee, end, calf + 0.004, bone + 0.012, cloth)
                if look.side_stripe and abs(self.sin) > 0.3 and side == self.near_side:
                    self._limb(self.pen, hip, knee, 0.011, 0.010, shade(look.second_colour, dim))
                    self._limb(self.pen, knee, end, 0.010, 0.009, shade(look.second_colour, dim))
                self._limb(self.pen, knee, end, 0.006, 0.004, (0, 0, 0, 26))
        # The foot points where the person faces.
        x, y, z = self.body.legs[side][2]
        heel, toe = self._at(x, y - 0.018, z - 0.018), self._at(x, y - 0.022, z + 0.062)
        self._limb(self.pen, heel, toe, 0.020, 0.015, shade(look.shoes, dim))

    def _draw_skirt(self) -> None:
        look = self.look
        if look.upper in ("dress", "coat"):
            top, hem, fill = look.leg_length + 0.05, HEMS[look.upper], None
        elif look.lower in SKIRT_HEMS:
            top, hem, fill = look.leg_length + 0.06, SKIRT_HEMS[look.lower], look.lower_colour
        else:
            return
        waist = self._half_width(self.body.shoulder_half * 0.74 * look.waist, self.body.chest_depth * 0.95)
        hips = self._half_width(self.body.shoulder_half * 0.86 * look.hips, self.body.chest_depth * 1.05)
        flare = max(hips + 0.030, *(self._reach(leg, hem) for leg in self.body.legs.values()))
        shape = self._outline([(top, waist), (look.leg_length - 0.02, hips), (hem, flare)])
        if fill is None:
            mask, pen = self._mask()
            pen.polygon(shape, 255)
            self._cloth(mask)
        else:
            self.pen.polygon(shape, fill)
        for offset in (-0.45, 0.05, 0.5):  # folds
            self.pen.line([self._outline([(look.leg_length - 0.03, 0)])[0],
                           (self._at(0, hem)[0] + offset * flare * self.height, self._at(0, hem)[1])],
                          (0, 0, 0, 34), max(1, round(0.008 * self.height)))  # fmt: skip

    def _reach(self, leg: tuple[Joint, Joint, Joint], level: float) -> float:
        """How far from the body's axis a cloth has to hang to cover a leg at a level, in heights."""
        _, knee, ankle = leg
        along = min(1.0, max(0.0, (knee[1] - level) / (knee[1] - ankle[1])))
        x, z = (knee[axis] + along * (ankle[axis] - knee[axis]) for axis in (0, 2))
        return abs(x * self.cos + z * self.sin) + 0.045

    def _draw_torso(self) -> None:
        look = self.look
        neck = self._at(0, SHOULDER - 0.01), self._at(0, CHIN + 0.03)
        self._limb(self.pen, *neck, 0.030, 0.028, shade(look.skin, 0.86))
        hem = max(HEMS[look.upper], look.leg_length - 0.03)
        wide, deep = self.body.shoulder_half, self.body.chest_depth
        levels = [
            (SHOULDER + 0.022, self._half_width(0.040, 0.034)),
            (SHOULDER, self._half_width(wide * 0.82, deep * 0.62)),
            (SHOULDER - 0.03, self._half_width(wide * 0.98, deep * 0.86)),
            (0.70, self._half_width(wide * 0.93, deep)),
            (0.60, self._half_width(wide * 0.84 * look.waist, deep * 0.96)),
            (hem + 0.02, self._half_width(wide * 0.84 * look.hips, deep)),
            (hem, self._half_width(wide * 0.85 * look.hips, deep)),
        ]
        if look.upper not in ("dress", "coat") and look.lower not in SKIRT_HEMS:  # the seat of the trousers
            seat = self._half_width(wide * 0.80 * look.hips, deep * 0.98)
            shape = self._outline([(hem + 0.03, seat), (look.leg_length - 0.05, seat * 0.94)])
            self.pen.polygon(shape, look.lower_colour)
        mask, pen = self._mask()
        pen.polygon(self._outline(levels), 255)
        self._cloth(mask)
        if self.cos > 0.1:
            self._draw_front(hem)
        if look.upper == "hoodie":
            x, z = 0.0, -0.5 * deep
            self._ellipse(self._at(x, SHOULDER + 0.012, z), 0.058, 0.034, shade(look.upper_colour, 0.82))
        side = 1 if self.sin >= 0 else -1  # a darker far edge gives the body its roundness
        edge = [(self._at(0, y)[0] - side * half * self.height, self._at(0, y)[1]) for y, half in levels[1:]]
        inner = [(x + side * 0.035 * self.height, y) for x, y in edge]
        self.pen.polygon(edge + inner[::-1], (0, 0, 0, 40))

    def _draw_front(self, hem: float) -> None:
        """What only the front shows: an open jacket, a neckline, a hoodie's pocket."""
        look, forward = self.look, self.body.chest_depth * 0.9
        if look.upper in ("jacket", "coat"):
            half = 0.030 * self.cos
            inner = shade(look.second_colour, 0.95)
            shape = [(SHOULDER + 0.015, half * 1.3), (0.68, half), (hem, half * 1.25)]
            self.pen.polygon(self._outline(shape, lean=forward), inner)
        elif look.upper in ("t-shirt", "dress", "vest"):
            self._ellipse(self._at(0, SHOULDER + 0.012, forward * 0.4), 0.036 * self.cos, 0.026, shade(look.skin, 0.92))
        elif look.upper == "shirt":
            top, bottom = self._at(0, SHOULDER, forward), self._at(0, hem, forward)
            self.pen.line([top, bottom], (0, 0, 0, 60), max(1, round(0.007 * self.height)))
        elif look.upper == "hoodie":
            self.pen.polygon(self._outline([(0.585, 0.05 * self.cos), (hem + 0.035, 0.075 * self.cos)], lean=forward),
                             (0, 0, 0, 44))  # fmt: skip

    def _draw_arm(self, side: int, dim: float) -> None:
        look = self.look
        shoulder, elbow, hand = (self._at(*joint) for joint in self.body.arms[side])
        upper, fore, wrist = 0.036 * look.girth**0.8, 0.029 * look.girth**0.6, 0.019
        skin = shade(look.skin, dim)
        sleeve = SLEEVES.get(look.upper, "long")
        if side == self.near_side or abs(self.sin) <= 0.35:  # a soft contour parts the arm from the body
            self._limb(self.pen, shoulder, elbow, upper + 0.006, fore + 0.006, (0, 0, 0, 46))
            self._limb(self.pen, elbow, hand, fore + 0.006, wrist + 0.006, (0, 0, 0, 46))
        self._limb(self.pen, shoulder, elbow, upper, fore, skin)
        self._limb(self.pen, elbow, hand, fore, wrist, skin)
        self._ellipse(hand, 0.021, 0.024, skin)
        if sleeve == "none":
            return
        mask, pen = self._mask()
        if sleeve == "short":
            cuff = (shoulder[0] + 0.62 * (elbow[0] - shoulder[0]), shoulder[1] + 0.62 * (elbow[1] - shoulder[1]))
            self._limb(pen, shoulder, cuff, upper + 0.004, upper + 0.004, 255)
        else:
            cuff = (elbow[0] + 0.86 * (hand[0] - elbow[0]), elbow[1] + 0.86 * (hand[1] - elbow[1]))
            self._limb(pen, shoulder, elbow, upper + 0.003, fore + 0.005, 255)
            self._limb(pen, elbow, cuff, fore + 0.005, wrist + 0.006, 255)
        self._cloth(mask, dim * 0.95)

    def _draw_head(self) -> None:
        look, size = self.look, self.look.head_size
        centre = self._at(0, 0.932, 0.012)
        rx, ry = self._half_width(0.045, 0.054) * size, 0.066 * size
        self._ellipse(centre, rx, ry, look.skin)
        x, y = centre
        unit = self.height * size
        face_x = x + 0.030 * self.sin * unit
        if self.cos > -0.1:  # eyes, mouth and the shadow under the chin
            for offset in (-0.018, 0.018):
                eye = face_x + offset * self.cos * unit
                if abs(eye - x) < 0.042 * unit:
                    self._ellipse((eye, y - 0.002 * unit), 0.0062, 0.0058, (30, 24, 24, 190))
            self._ellipse((face_x, y + 0.036 * unit), 0.012 * max(self.cos, 0.4), 0.0045, (120, 60, 56, 150))
        self._draw_hair(x, y, rx, ry, unit)
        self._draw_hat(x, y, rx, unit)

    def _draw_hair(self, x: float, y: float, rx: float, ry: float, unit: float) -> None:
        look = self.look
        if look.hair == "bald":
            return
        colour = look.hair_colour
        grow = {"short": 1.06, "curly": 1.34}.get(look.hair, 1.12)
        w, h = rx * grow * self.height, ry * grow * self.height
        if self.seen_from_behind:  # the whole head but the nape
            self.pen.ellipse((x - w, y - h * 1.02, x + w, y + h * 0.72), colour)
        else:  # a cap of hair that leaves the face free
            back = -0.020 * self.sin * unit
            self.pen.pieslice((x - w + back * 0.3, y - h * 1.04, x + w + back * 0.3, y + h * 0.9), 180, 360, colour)
            face = self._half_width(0.034, 0.030) * look.head_size * self.height
            fx = x + 0.024 * self.sin * unit
            self.pen.pieslice((fx - face, y - h * 0.42, fx + face, y + h * 0.42), 180, 360, look.skin)
            if abs(self.sin) > 0.3:  # hair at the back of the head, seen from the side
                bx = x - 0.030 * self.sin * unit
                self.pen.ellipse((bx - 0.030 * unit, y - h * 0.9, bx + 0.030 * unit, y + h * 0.45), colour)
        if look.hair == "bun":
            bun = self._at(0, 0.985, -0.030)
            self._ellipse(bun, 0.027, 0.025, shade(colour, 0.9))
        if look.hair == "curly":
            for angle in np.linspace(pi, 2 * pi, 7):
                self._ellipse((x + w * 0.8 * cos(angle), y + h * 0.8 * sin(angle)), 0.019, 0.019, colour)

    def _hair_behind(self) -> None:
        """Hair that falls over the neck and the back."""
        look = self.look
        length = {"bob": 0.865, "long": 0.755}.get(look.hair)
        colour = shade(look.hair_colour, 0.92)
        if length:
            half = self._half_width(0.052, 0.036) * look.head_size
            x, top = self._at(0, 0.965, -0.030)[0], self._at(0, 0.965)[1]
            half, bottom = half * self.height, self._at(0, length)[1]
            self.pen.rounded_rectangle((x - half, top, x + half, bottom), 0.8 * half, colour)
        elif look.hair == "ponytail":
            self._limb(self.pen, self._at(0, 0.955, -0.050), self._at(0, 0.80, -0.075), 0.020, 0.010, colour)

    def _draw_hat(self, x: float, y: float, rx: float, unit: float) -> None:
        look = self.look
        if look.hat == "none":
            return
        colour, dark = look.hat_colour, shade(look.hat_colour, 0.7)
        w, top = rx * 1.16 * self.height, y - 0.082 * unit
        brow = y - 0.018 * unit
        self.pen.pieslice((x - w, top, x + w, brow + (brow - top)), 180, 360, colour)
        if look.hat == "beanie":
            self.pen.rectangle((x - w, brow - 0.014 * unit, x + w, brow + 0.004 * unit), dark)
        elif look.hat == "cap" and not self.seen_from_behind:
            fx = x + 0.050 * self.sin * unit
            self.pen.ellipse((fx - 0.042 * unit, brow - 0.014 * unit, fx + 0.042 * unit, brow + 0.010 * unit), dark)
        elif look.hat == "sun hat":
            self.pen.ellipse((x - 0.088 * unit, brow - 0.018 * unit, x + 0.088 * unit, brow + 0.014 * unit), dark)

    # Bags --------------------------------------------------------------------------------------------------------

    def _backpack(self) -> None:
        look = self.look
        if look.bag != "backpack":
            return
        colour = look.bag_colour
        wide, deep = 0.088, 0.055
        x, top = self._at(0, 0.80, -self.body.chest_depth - deep)
        bottom = self._at(0, 0.575)[1]
        half = self._half_width(wide, deep) * self.height
        self.pen.rounded_rectangle((x - half, top, x + half, bottom), 0.035 * self.height, colour)
        if self.seen_from_behind:
            pocket = (x - half * 0.7, (top + 1.6 * bottom) / 2.6, x + half * 0.7, bottom - 0.012 * self.height)
            self.pen.rounded_rectangle(pocket, 0.02 * self.height, shade(colour, 0.76))
            self.pen.rounded_rectangle((x - half, top, x - half * 0.6, bottom), 0.02 * self.height, (0, 0, 0, 30))

    def _straps(self) -> None:
        """A backpack seen from the front is its two straps."""
        if self.look.bag != "backpack" or self.seen_from_behind:
            return
        width = max(2, round(0.020 * self.height))
        for side in (-1, 1):
            line = [self._at(side * 0.058, SHOULDER + 0.012, 0.02), self._at(side * 0.066, 0.70, self.body.chest_depth),
                    self._at(side * 0.088, 0.61, 0.02)]  # fmt: skip
            self.pen.line(line, shade(self.look.bag_colour, 0.85), width, joint="curve")

    def _shoulder_bag(self) -> None:
        look = self.look
        self._straps()
        if look.bag != "shoulder bag":
            return
        side = look.bag_side
        hip = self._at(side * (self.body.shoulder_half + 0.012), look.leg_length + 0.01, 0.01)
        opposite = self._at(-side * self.body.shoulder_half * 0.6, SHOULDER + 0.005, 0.0)
        width = max(2, round(0.016 * self.height))
        self.pen.line([opposite, hip], shade(look.bag_colour, 0.75), width)
        if side == self.near_side or abs(self.sin) < 0.6:
            half = self._half_width(0.030, 0.066) * self.height
            box = (hip[0] - half, hip[1] - 0.012 * self.height, hip[0] + half, hip[1] + 0.085 * self.height)
            self.pen.rounded_rectangle(box, 0.012 * self.height, look.bag_colour)
            self.pen.rectangle((box[0], box[1], box[2], box[1] + 0.03 * self.height), shade(look.bag_colour, 0.75))

    def _handbag(self, side: int) -> None:
        look = self.look
        if look.bag != "handbag" or look.bag_side != side or self.pose.raised_arm == side:
            return
        x, y = self._at(*self.body.arms[side][2])
        half = self._half_width(0.035, 0.070) * self.height
        top = y + 0.055 * self.height
        self.pen.line([(x - half * 0.6, top), (x, y), (x + half * 0.6, top)], shade(look.bag_colour, 0.7),
                      max(1, round(0.010 * self.height)))  # fmt: skip
        self.pen.polygon([(x - half * 0.85, top), (x + half * 0.85, top), (x + half, top + 0.10 * self.height),
                          (x - half, top + 0.10 * self.height)], look.bag_colour)  # fmt: skip
