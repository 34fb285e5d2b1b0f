"""The body under the clothes: joints of a walk in three dimensions, and how a camera sees them.

The body frame's unit is the standing height: x to the person's side, y up from the ground, z to where the person faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, pi, sin

import numpy as np

from train.data.fabric import CHEST_DEPTH
from train.data.looks import Look

Point = tuple[float, float]
Joint = tuple[float, float, float]

ANKLE, SHOULDER, CHIN = 0.035, 0.815, 0.868
PITCH = 0.12  # the camera looks down a little: what is nearer stands lower in the picture


@dataclass(frozen=True)
class Pose:
    """How the person stands in one image; angles in radians.

    ``yaw`` turns the body: 0 faces the camera, pi/2 walks to the right, pi shows the back. ``phase`` is the moment of
    the walk. ``raised_arm`` is the side (-1 or 1) whose hand is at the head, or 0.
    """

    yaw: float
    phase: float
    stride: float
    arm_swing: float
    raised_arm: int


def draw_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Draws a moment of a walk."""
    return Pose(
        yaw=float(yaw),
        phase=float(rng.uniform(0, 2 * pi)),
        stride=float(rng.uniform(0.12, 0.52)),
        arm_swing=float(rng.uniform(0.08, 0.5)),
        raised_arm=int(rng.choice((-1, 0, 1), p=(0.04, 0.92, 0.04))),
    )


class Skeleton:
    """The joints of one person in one pose.

    Attributes:
        legs: hip, knee and ankle of each side (-1 and 1).
        arms: shoulder, elbow and hand of each side.
        shoulder_half: half the width of the shoulders.
        chest_depth: half the depth of the chest.
    """

    def __init__(self, look: Look, pose: Pose, centre: float, ground: float, height: float):
        self.look, self.pose = look, pose
        self.centre, self.ground, self.height = centre, ground, height
        self.cos, self.sin = cos(pose.yaw), sin(pose.yaw)
        self.shoulder_half, self.chest_depth = 0.118 * look.girth, CHEST_DEPTH * look.girth
        self.legs = {side: self._leg(side) for side in (-1, 1)}
        self.arms = {side: self._arm(side) for side in (-1, 1)}
        self.drop = min(ankle[1] for _, _, ankle in self.legs.values()) - ANKLE  # the lower foot stands on the ground

    def project(self, x: float, y: float, z: float = 0.0) -> Point:
        """Where a point of the body frame lies in the picture: column and row in pixels."""
        across = x * self.cos + z * self.sin
        toward_camera = z * self.cos - x * self.sin
        up = y - self.drop - PITCH * toward_camera
        return self.centre + self.height * across, self.ground - self.height * up

    def half_width(self, width: float, depth: float) -> float:
        """Half the apparent width of an elliptic section of the body, from its half width and half depth."""
        return hypot(width * self.cos, depth * self.sin)

    def _leg(self, side: int) -> tuple[Joint, Joint, Joint]:
        swing = self.pose.stride * sin(self.pose.phase) * side
        bend = 0.08 + 0.75 * self.pose.stride * max(0.0, cos(self.pose.phase) * side)
        thigh = shin = (self.look.leg_length - ANKLE) / 2
        hip = (side * 0.046 * self.look.girth * self.look.hips, self.look.leg_length, 0.0)
        knee = (hip[0], hip[1] - thigh * cos(swing), thigh * sin(swing))
        ankle = (hip[0] * 0.9, knee[1] - shin * cos(swing - bend), knee[2] + shin * sin(swing - bend))
        return hip, knee, ankle

    def _arm(self, side: int) -> tuple[Joint, Joint, Joint]:
        shoulder = (side * self.shoulder_half * 0.94, SHOULDER - 0.022, 0.0)
        if self.pose.raised_arm == side:
            elbow = (side * (self.shoulder_half + 0.045), SHOULDER - 0.155, 0.05)
            return shoulder, elbow, (side * 0.06, CHIN + 0.03, 0.06)
        swing = -side * self.pose.arm_swing * sin(self.pose.phase)
        bent = swing + 0.12 + 0.4 * self.pose.arm_swing
        elbow = (side * (self.shoulder_half + 0.022), shoulder[1] - 0.165 * cos(swing), 0.165 * sin(swing))
        hand = (elbow[0] - side * 0.006, elbow[1] - 0.15 * cos(bent), elbow[2] + 0.15 * sin(bent))
        return shoulder, elbow, hand
