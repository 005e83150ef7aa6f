"""Registry: objects by the names that configs use."""

from fvcore.common.registry import Registry

__all__ = ["Registry"]
