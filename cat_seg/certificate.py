"""How much labels may change for speed: measured on pictures without labels, and guaranteed.

With a large vocabulary most classes are in no picture. `calibrate` finds how few of them can be
computed (`InferencePlan.max_classes` and `representatives`) so that labels are nearly those of all
classes. The target is agreement with the full model, so any pictures will do that are like those to
come. A certificate says: with this confidence, at most this share of pictures has more than the
allowed share of its pixels changed. It is a binomial bound, exact for any kind of pictures.

A bound on the mean over all pictures would need thousands of them: a hundred that did not change
cannot exclude that one in fifty changes altogether.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cat_seg.errors import CATSegError

if TYPE_CHECKING:
    from cat_seg.inference import InferencePlan
    from cat_seg.model import CATSeg
    from cat_seg.vocabulary import Vocabulary

FEWEST = 8  # classes worth leaving


@dataclass(frozen=True)
class Certificate:
    """What was found for one vocabulary; shares and confidence in [0, 1].

    Attributes:
        words: digest of the vocabulary.
        max_classes, representatives: the setting, see `InferencePlan`.
        allow: share of a picture's pixels that may change.
        share: of pictures in which more than that may change.
        confidence: of the statement.
        pictures: how many it rests on.
        exceeding: in how many of them more changed than is allowed.
        mean_changed: share of pixels that changed, over all of them.
    """

    words: str
    max_classes: int
    representatives: int
    allow: float
    share: float
    confidence: float
    pictures: int
    exceeding: int
    mean_changed: float

    @classmethod
    def parse(cls, told: Any) -> Certificate | None:
        """Read what a config.json holds; None if it is no certificate."""
        if not isinstance(told, Mapping):
            return None
        kinds: dict[str, Any] = {"str": str, "int": int, "float": (int, float)}
        wanted = {name: kinds[kind] for name, kind in cls.__annotations__.items()}
        if not all(isinstance(told.get(name), kind) for name, kind in wanted.items()):
            return None
        found = cls(**{name: told[name] for name in wanted})
        sane = found.max_classes > 0 and found.representatives >= 0
        return found if sane else None

    def applies(self, vocabulary: Vocabulary) -> bool:
        """Tell whether it was made for these words."""
        return self.words == digest(vocabulary)

    def plan(self, plan: InferencePlan) -> InferencePlan:
        """Return a plan with its setting."""
        return replace(plan, max_classes=self.max_classes, representatives=self.representatives)

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"Computed {self.max_classes} classes and {self.representatives} representatives of "
            f"the others: with {self.confidence:.0%} confidence, at most {self.share:.0%} of "
            f"pictures like the {self.pictures} of the calibration have more than "
            f"{100 * self.allow:g} % of their pixels changed ({100 * self.mean_changed:.3g} % did)."
        )


def calibrate(
    model: CATSeg,
    pictures: Iterable[Any],
    vocabulary: Vocabulary,
    *,
    allow: float = 0.001,
    share: float = 0.05,
    confidence: float = 0.95,
) -> Certificate:
    """Find the cheapest setting that keeps its promise.

    Args:
        model: of which all classes are the truth.
        pictures: what `CATSeg.predict` takes; like those to come, and chosen without looking.
        vocabulary: its words.
        allow, share, confidence: see `Certificate`.

    Raises:
        CATSegError: if the numbers make no sense, there are too few pictures, or no setting keeps
            the promise.
    """
    for name, value in (("allow", allow), ("share", share), ("confidence", confidence)):
        if not 0 <= value < 1 or (value == 0 and name != "allow"):
            raise CATSegError(f"{name} is {value}; expected a share between 0 and 1.")
    pictures = list(pictures)
    least = math.ceil(math.log(1 - confidence) / math.log(1 - share))
    if len(pictures) < least:
        raise CATSegError(
            f"{len(pictures)} pictures cannot show with {confidence:.0%} confidence what holds for "
            f"{1 - share:.0%} of all; give at least {least}."
        )
    count = len(vocabulary) + len(vocabulary.background)
    ladder = settings(count, model.config.max_classes)
    changed: list[list[float]] = [[] for _ in ladder]
    whole = replace(model.plan, max_classes=0, representatives=0)
    for picture in tqdm(pictures, desc="Calibrating", unit="picture", disable=None):
        encoded = model.encode(picture, plan=whole)
        labels = model.predict(encoded, vocabulary, plan=whole).labels
        for shares, (count, others) in zip(changed, ladder, strict=True):
            plan = replace(whole, max_classes=count, representatives=others)
            found = model.predict(encoded, vocabulary, plan=plan).labels
            shares.append(float(np.mean(found != labels)))
    best = choose(changed, allow=allow, share=share, confidence=confidence)
    if best is None:
        raise CATSegError(
            f"No setting changes at most {100 * allow:g} % of the pixels in {1 - share:.0%} of "
            "pictures like these; allow more, or go on with all classes."
        )
    return Certificate(
        digest(vocabulary),
        *ladder[best],
        allow,
        share,
        confidence,
        len(pictures),
        sum(one > allow for one in changed[best]),
        float(np.mean(changed[best])),
    )


def settings(count: int, limit: int = 0) -> list[tuple[int, int]]:
    """List classes and representatives to try, the safest first.

    Args:
        count: of words.
        limit: classes that the model computes by itself, 0 for all. What it drops anyway is not
            represented.
    """
    ladder = []
    limited = 0 < limit < count
    kept = 3 * (limit if limited else count) // 4
    while kept >= FEWEST:
        others = min(max(8, kept // 2), count - kept)
        ladder.append((kept, 0 if limited else others))
        kept = 2 * kept // 3
    return ladder


def choose(
    changed: Sequence[Sequence[float]], *, allow: float, share: float, confidence: float
) -> int | None:
    """Choose the last setting up to which all keep the promise; None if the first does not.

    They are tested one after the other, the safest first, until one fails: then the confidence
    holds for the choice, however many were tested.

    Args:
        changed: of each setting, the share of changed pixels of each picture.
        allow, share, confidence: see `Certificate`.
    """
    best = None
    for index, shares in enumerate(changed):
        exceeding = sum(one > allow for one in shares)
        if at_most(exceeding, len(shares), share) > 1 - confidence:
            break
        best = index
    return best


def at_most(count: int, tries: int, chance: float) -> float:
    """Return the probability that something of this chance happens at most so many times."""
    terms = (
        math.comb(tries, k) * chance**k * (1 - chance) ** (tries - k) for k in range(count + 1)
    )
    return sum(terms)


def digest(vocabulary: Vocabulary) -> str:
    """Return a digest of the words of a vocabulary."""
    words = json.dumps([vocabulary.classes, vocabulary.background])
    return hashlib.sha256(words.encode()).hexdigest()[:16]
