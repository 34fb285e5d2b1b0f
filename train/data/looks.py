"""What a synthetic person looks like: the traits that make an identity, drawn once and kept in every image.

Four identities in a row form a family that shares the colours of its clothes, so that colour alone finds the family
and only pattern, cut, bag, hair and build find the person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

FAMILY_SIZE = 4

CLOTHES: dict[str, Colour] = {
    "black": (34, 34, 38), "white": (228, 228, 224), "grey": (128, 130, 134), "navy": (36, 46, 92),
    "blue": (48, 92, 176), "sky": (134, 178, 218), "red": (184, 40, 44), "wine": (104, 28, 44),
    "green": (48, 122, 70), "olive": (104, 104, 58), "mint": (150, 204, 176), "yellow": (222, 188, 62),
    "orange": (218, 118, 44), "pink": (222, 142, 164), "purple": (106, 66, 140), "brown": (104, 72, 50),
    "beige": (196, 176, 140),
}  # fmt: skip
LOWER_COLOURS = ("black", "black", "navy", "navy", "blue", "grey", "brown", "beige", "olive", "white", "wine")
SKIN: tuple[Colour, ...] = ((238, 204, 180), (224, 180, 148), (198, 148, 112), (156, 108, 76), (104, 70, 50))
HAIR: tuple[Colour, ...] = (
    (26, 22, 22), (52, 36, 28), (92, 62, 40), (150, 112, 64), (206, 172, 112), (150, 150, 150), (132, 58, 34),
)  # fmt: skip
SHOES: tuple[Colour, ...] = (
    (28, 28, 30), (232, 232, 230), (112, 76, 48), (180, 48, 48), (60, 84, 150), (150, 150, 152),
)  # fmt: skip

PATTERNS = ("plain", "hoops", "pinstripes", "checks", "dots", "halves", "print", "sash", "band")
UPPERS = ("t-shirt", "shirt", "jacket", "hoodie", "coat", "vest", "dress")
LOWERS = ("trousers", "shorts", "cropped", "skirt", "long skirt")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
HAIRSTYLES = ("short", "bob", "long", "ponytail", "bun", "curly", "bald")
HATS = ("none", "cap", "beanie", "sun hat")


@dataclass(frozen=True)
class Look:
    """The lasting traits of one identity; lengths are fractions of the standing height."""

    upper: str
    upper_colour: Colour
    second_colour: Colour
    pattern: str
    pattern_period: float
    lower: str
    lower_colour: Colour
    side_stripe: bool
    shoes: Colour
    skin: Colour
    hair: str
    hair_colour: Colour
    hat: str
    hat_colour: Colour
    bag: str
    bag_colour: Colour
    bag_side: int
    girth: float
    waist: float
    hips: float
    leg_length: float
    head_size: float


def family_numbers(identity: int) -> tuple[int, int]:
    """The family of an identity and its place in it."""
    return divmod(identity - 1, FAMILY_SIZE)


def draw_look(seed: int, identity: int) -> Look:
    """Draws the traits of an identity from the seed of the data set alone.

    Args:
        seed: the seed of the data set, >= 0.
        identity: the number of the person, >= 1.

    Returns:
        The same ``Look`` on every machine and in every process.

    Example:
        >>> draw_look(0, 7) == draw_look(0, 7)
        True
        >>> draw_look(0, 7) == draw_look(1, 7)
        False
    """
    family, place = family_numbers(identity)
    shared = np.random.default_rng([seed, 1, family])
    own = np.random.default_rng([seed, 2, identity])

    # Shared by the family: colours. Dealt out without repetition: pattern, bag, hair.
    upper_name = _pick(shared, tuple(CLOTHES))
    lower_name = _pick(shared, tuple(name for name in LOWER_COLOURS if name != upper_name))
    second_name = _pick(shared, tuple(name for name in CLOTHES if name not in (upper_name, lower_name)))
    pattern = PATTERNS[shared.permutation(len(PATTERNS))[place]]
    bag = BAGS[shared.permutation(len(BAGS))[place]]
    hair = HAIRSTYLES[shared.permutation(len(HAIRSTYLES))[place]]

    upper = _pick(own, UPPERS, (0.24, 0.22, 0.16, 0.12, 0.10, 0.06, 0.10))
    lower = _pick(own, LOWERS, (0.50, 0.18, 0.10, 0.14, 0.08))
    bag_colour = CLOTHES[_pick(own, tuple(name for name in CLOTHES if name != upper_name))]
    return Look(
        upper=upper,
        upper_colour=_vary(own, CLOTHES[upper_name]),
        second_colour=_vary(own, CLOTHES[second_name]),
        pattern=pattern,
        pattern_period=float(own.uniform(0.050, 0.085)),
        lower=lower,
        lower_colour=_vary(own, CLOTHES[lower_name]),
        side_stripe=bool(own.random() < 0.15),
        shoes=SHOES[own.integers(len(SHOES))],
        skin=_vary(own, SKIN[own.integers(len(SKIN))]),
        hair=hair,
        hair_colour=_vary(own, HAIR[own.integers(len(HAIR))]),
        hat=_pick(own, HATS, (0.76, 0.12, 0.07, 0.05)),
        hat_colour=CLOTHES[_pick(own, tuple(CLOTHES))],
        bag=bag,
        bag_colour=bag_colour,
        bag_side=1 if own.random() < 0.5 else -1,
        girth=float(own.uniform(0.84, 1.24)),
        waist=float(own.uniform(0.78, 1.02)),
        hips=float(own.uniform(0.90, 1.14)),
        leg_length=float(own.uniform(0.47, 0.525)),
        head_size=float(own.uniform(0.92, 1.08)),
    )


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (factor < 1) or lighter (factor > 1)."""
    return tuple(min(255, max(0, round(value * factor))) for value in colour)


def _pick(rng: np.random.Generator, choices: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    return choices[int(rng.choice(len(choices), p=weights))]


def _vary(rng: np.random.Generator, colour: Colour, spread: int = 7) -> Colour:
    return tuple(int(min(250, max(6, value + rng.integers(-spread, spread + 1)))) for value in colour)
