"""Datasets, and what is known of them, by name."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Functions that list the samples of a dataset, by the dataset's name."""

    def register(self, name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        """Register `func`, which returns one dict a sample, under a new name."""
        assert callable(func), f"dataset '{name}': expected a function, got {func!r}"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """Call the function registered under `name`.

        Raises:
            KeyError: if there is none.
        """
        if name not in self:
            known = ", ".join(self)
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {known}")
        return self[name]()

    def list(self) -> list[str]:
        """Return all names."""
        return list(self)

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self[name]


class Metadata(SimpleNamespace):
    """What is known of a dataset: `stuff_classes`, `ignore_label` and so on.

    An attribute keeps the value that it is given first.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
            f"Available keys are {list(vars(self))}."
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in vars(self):
            old = vars(self)[key]
            assert old == value, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different "
                f"value!\n{old} != {value}"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes."""
        return dict(vars(self))

    def set(self, **kwargs: Any) -> Metadata:
        """Set several attributes."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or `default` if it was never set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Metadata by the dataset's name."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """Return the metadata of `name`, which is made on first use."""
        assert name, "a dataset needs a name"
        return self.setdefault(name, Metadata(name=name))

    def list(self) -> list[str]:
        """Return all names."""
        return list(self)

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self[name]


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
