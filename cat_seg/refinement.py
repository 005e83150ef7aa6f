"""Better masks on request: what changes the probabilities of a picture's classes by the picture.

A refinement is a function of a picture, (H, W, 3) uint8 RGB, and the probabilities of some classes,
(T, H, W) float32, that returns such probabilities. One of your own has a name by

    @register("refinement", "mine")
    def mine(image, probabilities): ...

`Segmentation.refined` says which classes it sees.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from cat_seg import registry
from cat_seg.errors import CATSegError
from cat_seg.registry import register

Refinement = Callable[[np.ndarray, np.ndarray], np.ndarray]

GUIDED_FILTER = "guided_filter"  # the one that ships


@register("refinement", GUIDED_FILTER)
def guided_filter(
    image: np.ndarray, probabilities: np.ndarray, *, radius: int = 0, epsilon: float = 1e-3
) -> np.ndarray:
    """Let edges of probabilities follow those of the picture ("Guided Image Filtering", 2013).

    In each window a probability is a linear function of the colour (equations 19 to 21 of the
    journal version, He, Sun and Tang, TPAMI 35(6)).

    Args:
        image: (H, W, 3) uint8.
        probabilities: (T, H, W)
        radius: of a window, in pixels; 0 for 1/20 of the shorter side.
        epsilon: the variance of colours, which lie in 0..1, below which a window is smoothed.

    Returns:
        (T, H, W) float32, within 0..1.
    """
    radius = radius or max(1, round(min(image.shape[:2]) / 20))

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(x, -1, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    guide = image.astype(np.float32) / 255
    centre = mean(guide)  # (H, W, 3)
    products = [[mean(guide[..., i] * guide[..., j]) for j in range(3)] for i in range(3)]
    covariance = np.moveaxis(np.array(products), (0, 1), (2, 3))  # (H, W, 3, 3)
    covariance -= centre[..., :, None] * centre[..., None, :]
    inverse = np.linalg.inv(covariance + epsilon * np.eye(3, dtype=np.float32))
    refined = np.empty(probabilities.shape, np.float32)
    for p, out in zip(probabilities.astype(np.float32), refined, strict=True):
        together = mean(guide * p[..., None]) - centre * mean(p)[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, together)
        offset = mean(p) - (slope * centre).sum(-1)
        out[:] = (mean(slope) * guide).sum(-1) + mean(offset)
    return refined.clip(0, 1, out=refined)


def refine(
    refinement: str | Refinement, image: np.ndarray, probabilities: np.ndarray
) -> np.ndarray:
    """Run a refinement, by its registered name or itself.

    Raises:
        CATSegError: if there is none of that name, or it returns anything else.
    """
    function = (
        registry.find("refinement", refinement) if isinstance(refinement, str) else refinement
    )
    refined = np.asarray(function(image, probabilities), np.float32)
    if refined.shape != probabilities.shape or not np.isfinite(refined).all():
        raise CATSegError(
            f"The refinement {refinement!r} returned {refined.shape}; expected finite "
            f"probabilities of {probabilities.shape} (classes, rows, columns)."
        )
    return refined
