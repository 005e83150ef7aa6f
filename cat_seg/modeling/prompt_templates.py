"""Sentences around a class name, in which CLIP knows it better than alone."""

from __future__ import annotations

from open_clip import OPENAI_IMAGENET_TEMPLATES

from cat_seg.errors import CATSegError

_SCENE = "A photo of a {} in the scene"

_TEMPLATES: dict[str, tuple[str, ...]] = {
    # OpenAI's 80, in their order, which is the order of the input channels of `conv1` (2023).
    "imagenet": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
    "imagenet_select": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        _SCENE,
    ),
    "single": (_SCENE,),  # 2024
}


def get_templates(name: str) -> tuple[str, ...]:
    """The templates of a set, each with one "{}" for the class name.

    Raises:
        CATSegError: if there is no set of that name.
    """
    if name not in _TEMPLATES:
        raise CATSegError(
            f"PROMPT_ENSEMBLE_TYPE is {name!r}; expected one of {', '.join(_TEMPLATES)}."
        )
    return _TEMPLATES[name]
