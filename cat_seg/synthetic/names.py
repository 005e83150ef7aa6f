"""The words of the synthetic world: backgrounds, and objects that are colour x pattern x shape.

An object's name is "<colour> <pattern> <shape>", for example "red striped star". One shape of
every (colour, pattern) pair is held out of segmentation training: its masks are never seen there,
while its colour, its pattern, its shape and every pair of these are seen in other objects.
"""

from __future__ import annotations

from itertools import product
from math import gcd

COLOURS = ("red", "yellow", "green", "cyan", "blue", "pink")
PATTERNS = ("plain", "striped", "dotted")
SHAPES = ("circle", "triangle", "star", "cross")
BACKGROUNDS = ("grass", "sand", "water", "brick wall", "wood", "snow", "sky", "gravel")


def _is_held_out(colour: int, pattern: int, shape: int) -> bool:
    return (colour + pattern + shape) % len(SHAPES) == 0


_HELD_OUT = {
    (COLOURS[c], PATTERNS[p], SHAPES[s])
    for c, p, s in product(range(len(COLOURS)), range(len(PATTERNS)), range(len(SHAPES)))
    if _is_held_out(c, p, s)
}

OBJECTS = tuple(" ".join(words) for words in product(COLOURS, PATTERNS, SHAPES))
HELD_OUT_OBJECTS = tuple(name for name in OBJECTS if tuple(name.split()) in _HELD_OUT)
SEEN_OBJECTS = tuple(name for name in OBJECTS if tuple(name.split()) not in _HELD_OUT)

SEEN_NAMES = BACKGROUNDS + SEEN_OBJECTS
"""Classes of segmentation training: a label is an index into this tuple."""

NAMES = SEEN_NAMES + HELD_OUT_OBJECTS
"""All classes, the held-out ones last, so that a seen class has one label in both vocabularies."""


def phrase_groups() -> tuple[dict[str, frozenset[str]], ...]:
    """Group phrases that say equally much, each with the names that it is true of.

    Returns:
        Full names and backgrounds; shapes ("star"), colours ("red object"), patterns ("striped
        object"); then pairs: "red star", "striped star", "red striped object".
    """
    groups: tuple[dict[str, set[str]], ...] = tuple({} for _ in range(7))
    groups[0].update({name: {name} for name in NAMES})
    for name in OBJECTS:
        colour, pattern, shape = name.split()
        said = (
            shape,
            f"{colour} object",
            f"{pattern} object",
            f"{colour} {shape}",
            f"{pattern} {shape}",
            f"{colour} {pattern} object",
        )
        for group, phrase in zip(groups[1:], said, strict=True):
            group.setdefault(phrase, set()).add(name)
    return tuple({said: frozenset(names) for said, names in group.items()} for group in groups)


def phrases() -> dict[str, frozenset[str]]:
    """Return all of `phrase_groups` in one."""
    return {said: names for group in phrase_groups() for said, names in group.items()}


SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "yellow": ("golden",),
    "green": ("emerald",),
    "cyan": ("turquoise", "aqua"),
    "pink": ("magenta", "rose"),
    "plain": ("solid", "unpatterned"),
    "striped": ("stripy", "lined"),
    "dotted": ("spotted", "dotty"),
    "circle": ("disc", "disk"),
    "cross": ("plus",),
    "object": ("thing", "shape"),
    "grass": ("lawn", "meadow"),
    "water": ("sea", "lake"),
    "brick wall": ("bricks", "wall of bricks"),
    "wood": ("planks", "wooden planks"),
    "gravel": ("pebbles",),
}
"""Other words for the words of the world; what a person would say for what is drawn."""

_PLURALS = {shape: f"{shape}s" for shape in SHAPES[:-1]} | {"cross": "crosses", "object": "objects"}


def wordings(phrase: str) -> tuple[str, ...]:
    """Say a phrase of `phrases` otherwise: other words, another order, an article, a plural.

    Returns:
        all that are known, the phrase not among them.
    """
    if phrase in BACKGROUNDS:
        said = SYNONYMS.get(phrase, ())
        return (*said, f"the {phrase}")
    *adjectives, thing = phrase.split()
    choices = [(word, *SYNONYMS.get(word, ())) for word in (*adjectives, thing)]
    said = tuple(" ".join(words) for words in product(*choices))
    if len(adjectives) == 2:
        said += (f"{adjectives[1]} {adjectives[0]} {thing}",)
    said += (f"{' '.join([*adjectives, _PLURALS[thing]])}", f"a {phrase}", f"the {phrase}")
    if thing == "object":
        plain = " ".join(adjectives)
        said += (f"something {plain}", f"anything {plain}", plain)
    return said[1:]


_MORE_COLOURS = (
    "crimson", "scarlet", "golden", "lime", "emerald", "turquoise", "navy", "magenta", "orange",
    "purple", "brown", "black", "white", "grey", "silver", "beige",
)  # fmt: skip
_MORE_PATTERNS = ("solid", "lined", "spotted", "checked", "zigzag", "speckled", "woven", "glossy")
_MORE_SHAPES = (
    "disc", "ring", "plus", "square", "hexagon", "arrow", "heart", "crescent", "spiral", "moon",
)  # fmt: skip


def wide_names(count: int) -> tuple[str, ...]:
    """Return a vocabulary of `NAMES` and others, which are in no picture.

    The others are made of words of the world and of words beside it, near-synonyms among them
    ("crimson striped disc"), in an order that mixes them and does not depend on `count`.

    Raises:
        ValueError: if there are not so many.
    """
    sets = (COLOURS + _MORE_COLOURS, PATTERNS + _MORE_PATTERNS, SHAPES + _MORE_SHAPES)
    every = [size + " ".join(words) for size in ("", "tiny ", "huge ") for words in product(*sets)]
    others = [name for name in every if name not in set(OBJECTS)]
    # A stride that shares no factor with the length visits each once.
    stride = next(s for s in range(3571, 9000) if gcd(s, len(others)) == 1)
    names = NAMES + tuple(others[i * stride % len(others)] for i in range(len(others)))
    if not 0 < count <= len(names):
        raise ValueError(f"{count} names; there are 1 to {len(names)}.")
    return names[:count]
