"""Parts of a model that anyone may add by name, without changing this package.

    from cat_seg.registry import register

    @register("layer", "parallel")
    class ParallelLayer(AggregatorLayer):
        def __init__(self, config, *, dropout=0.0): ...

    ModelConfig(parts=({"layer": "parallel", "dropout": 0.1},))     # MODEL.PARTS of a YAML

A part is asked for by its kind and name, and made by calling what was registered with the
`ModelConfig` and the part's other settings. docs/extending.md says for each kind what is made.

A name is known once the module that registers it is imported. For commands, that are the entry
points of installed packages in the group "cat_seg", and the modules that the environment variable
CAT_SEG_PLUGINS names. No config and no saved model is ever asked which module to import.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from cat_seg.errors import CATSegError

if TYPE_CHECKING:
    from cat_seg.model_config import ModelConfig

GROUP, VARIABLE = "cat_seg", "CAT_SEG_PLUGINS"
KINDS = (
    *("encoder", "guidance", "volume", "cost", "layer", "decoder"),
    *("text", "adapter", "loss", "sampling"),
)
# Not of a config: what `Segmentation.refined` is asked for by name.
OTHERS = ("refinement",)
# What a model needs in training alone.
TRAINING = ("loss", "sampling")

Part = Mapping[str, Any]  # {kind: name, and settings}
Factory = TypeVar("Factory", bound=Callable[..., Any])

_factories: dict[tuple[str, str], Callable[..., Any]] = {}


def register(kind: str, name: str) -> Callable[[Factory], Factory]:
    """Make a class or function known as a part: a decorator.

    Args:
        kind: one of `KINDS` or `OTHERS`.
        name: by which configs ask for it.

    Raises:
        CATSegError: if there is no such kind, or another has the name.
    """
    if kind not in KINDS + OTHERS:
        known = ", ".join(KINDS + OTHERS)
        raise CATSegError(f"{kind!r} is no kind of part; expected one of {known}.")

    def remember(factory: Factory) -> Factory:
        other = _factories.setdefault((kind, name), factory)
        # A module that is loaded anew may register its own again.
        if (other.__module__, other.__qualname__) != (factory.__module__, factory.__qualname__):
            raise CATSegError(
                f"The {kind} {name!r} is registered by {other.__module__} already; {kind} and name "
                f"of what {factory.__module__} registers must be others."
            )
        _factories[kind, name] = factory
        return factory

    return remember


def make(config: ModelConfig, kind: str) -> Any | None:
    """Make the part of a kind that a model has one of; None where its config names none.

    Raises:
        CATSegError: if there are several, or see `make_all`.
    """
    parts = make_all(config, kind)
    if len(parts) > 1:
        raise CATSegError(f"parts names {len(parts)} of the kind {kind!r}; expected one at most.")
    return parts[0] if parts else None


def make_all(config: ModelConfig, kind: str) -> list[Any]:
    """Make all parts of a kind that a config names, in its order.

    Raises:
        CATSegError: if a name is not registered, or its settings are not what it takes.
    """
    made = []
    for part in config.parts:
        if kind_of(part) == kind:
            settings = {key: value for key, value in part.items() if key != kind}
            factory = find(kind, part[kind])
            try:
                inspect.signature(factory).bind(config, **settings)
            except TypeError as error:
                raise CATSegError(f"The {kind} {part[kind]!r} cannot be made: {error}.") from error
            made.append(factory(config, **settings))
    return made


def names(parts: Sequence[Part], kind: str) -> list[str]:
    """The names of a config's parts of a kind."""
    return [part[kind] for part in parts if kind_of(part) == kind]


def kind_of(part: Part) -> str:
    """The kind of a part of a config.

    Raises:
        CATSegError: if it is none, or of several kinds.
    """
    kinds = [kind for kind in KINDS if kind in part]
    if len(kinds) != 1 or not isinstance(part[kinds[0]], str):
        raise CATSegError(
            f"A part is {dict(part)!r}; expected one of {', '.join(KINDS)} with the name of a "
            'registered one, and its settings: {"layer": "parallel", "dropout": 0.1}.'
        )
    return kinds[0]


def find(kind: str, name: str, module: str = "") -> Callable[..., Any]:
    """Find what was registered.

    Args:
        kind, name: see `register`.
        module: which registers it, where that is known, for the error alone.

    Raises:
        CATSegError: if nothing was.
    """
    if (kind, name) not in _factories:
        _import_plugins()
    if (kind, name) in _factories:
        return _factories[kind, name]
    known = sorted(n for k, n in _factories if k == kind)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {known}." if known else "."
    where = f"module {module!r}" if module else "module that registers it"
    raise CATSegError(
        f"There is no {kind} {name!r} here{hint} Import the {where} first, name it in the "
        f"environment variable {VARIABLE}, or install the package that brings it."
    )


def origins(parts: Sequence[Part]) -> dict[str, str]:
    """The modules, other than this package's, that register parts: {"layer parallel": module}."""
    found = {}
    for part in parts:
        kind = kind_of(part)
        factory = _factories.get((kind, part[kind]))
        if factory is not None and factory.__module__.split(".")[0] != "cat_seg":
            found[f"{kind} {part[kind]}"] = factory.__module__
    return found


def check(parts: Sequence[Part], modules: Any = None) -> None:
    """Check that all parts that a model needs for inference are registered.

    Args:
        parts: of a config.
        modules: what `origins` told when the model was saved; of a file, so maybe anything.

    Raises:
        CATSegError: naming the part that is missing, and the module that registers it.
    """
    told = modules if isinstance(modules, dict) else {}
    for part in parts:
        kind = kind_of(part)
        if kind not in TRAINING:
            find(kind, part[kind], str(told.get(f"{kind} {part[kind]}", ""))[:100])


@cache  # once a process
def _import_plugins() -> None:
    for entry in entry_points(group=GROUP):
        entry.load()
    for name in filter(None, os.environ.get(VARIABLE, "").replace(",", " ").split()):
        importlib.import_module(name)
