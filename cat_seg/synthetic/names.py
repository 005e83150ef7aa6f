"""The words of the synthetic world: backgrounds, and objects that are colour x pattern x shape.

An object's name is "<colour> <pattern> <shape>", for example "red striped star". One shape of
every (colour, pattern) pair is held out of segmentation training: its masks are never seen there,
while its colour, its pattern, its shape and every pair of these are seen in other objects.
"""

from __future__ import annotations

from itertools import product

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
