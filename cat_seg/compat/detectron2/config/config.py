"""CfgNode, and `configurable`, which lets a class be built from a config."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from cat_seg.errors import CATSegError

from ..utils.file_io import PathManager
from .defaults import DEFAULTS


class CfgNode(_CfgNode):
    """fvcore's config node, on which `merge_from_file` logs what it assumes.

    Unlike the real one it runs no tags of a YAML (`!!python/object/apply:eval`) unless told to.
    """

    @classmethod
    def _open_cfg(cls, filename):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file, after the files that it names as `_BASE_`.

        Raises:
            AssertionError: if there is no such file.
            CATSegError: if the file is written for another version of the config.
            KeyError: if the file sets a key that this config does not have.
        """
        assert PathManager.isfile(cfg_filename), f"{cfg_filename}: this config does not exist"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        if "VERSION" not in loaded:
            logging.getLogger(__name__).warning(
                f"Config '{cfg_filename}' has no VERSION. "
                f"Assuming it to be compatible with latest v{self.VERSION}."
            )
        elif loaded.VERSION != self.VERSION:
            raise CATSegError(
                f"{cfg_filename}: expected VERSION {self.VERSION}, got {loaded.VERSION}. "
                "Converting a config of another version needs the real detectron2."
            )
        self.merge_from_other_cfg(loaded)


_DEFAULTS = CfgNode(DEFAULTS)


def get_cfg() -> CfgNode:
    """Return a new config that holds the defaults."""
    return _DEFAULTS.clone()


def configurable(init_func=None, *, from_config=None):
    """Let an `__init__`, or a function, be called with a config in place of its arguments.

    As a plain decorator of `__init__`, the class's `from_config(cfg, ...)` translates the config
    into arguments; for a function, it is the one that is given. Arguments that `from_config` does
    not take are passed on as they are.
    """
    if init_func is None:
        return configurable if from_config is None else _configurable_function(from_config)
    if init_func.__name__ != "__init__" or from_config is not None:
        raise TypeError("@configurable decorates __init__; other functions need from_config=...")

    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        translate = getattr(type(self), "from_config", None)
        if not inspect.ismethod(translate):
            error = TypeError if translate else AttributeError
            raise error("Class with @configurable must have a 'from_config' classmethod.")
        if _has_config(args, kwargs):
            init_func(self, **_translate(translate, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable[..., dict[str, Any]]):
    def decorate(function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            if _has_config(args, kwargs):
                return function(**_translate(from_config, args, kwargs))
            return function(*args, **kwargs)

        wrapped.from_config = from_config  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _has_config(args: tuple, kwargs: dict[str, Any]) -> bool:
    return any(isinstance(x, _CfgNode) for x in (*args[:1], kwargs.get("cfg")))


def _translate(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Call `from_config` with what it takes; add what it does not."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config} must take 'cfg' as the first argument!")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return from_config(*args, **kwargs)
    known = {k: v for k, v in kwargs.items() if k in parameters}
    extra = {k: v for k, v in kwargs.items() if k not in parameters}
    return {**from_config(*args, **known), **extra}
