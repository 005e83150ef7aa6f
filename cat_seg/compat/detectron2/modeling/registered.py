"""Lookup by a name from a config."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry

from cat_seg.compat import INSTALL_COMMAND
from cat_seg.errors import CATSegError


def registered(registry: Registry, key: str, name: str) -> Any:
    """Return what `registry` holds under `name`, the value of the config key `key`.

    Raises:
        CATSegError: if it holds nothing; detectron2's own models are not part of the stand-in.
    """
    if name not in registry:
        known = ", ".join(sorted(k for k, _ in registry)) or "none"
        raise CATSegError(
            f"{key} is {name!r}, which is not registered (registered: {known}). If it is one of "
            f"detectron2's own, it needs the real detectron2: {INSTALL_COMMAND}"
        )
    return registry.get(name)
