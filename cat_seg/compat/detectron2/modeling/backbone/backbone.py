"""Backbone, the base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from ...layers import ShapeSpec


class Backbone(nn.Module, ABC):
    """Turns images into feature maps by name ("res2", ...).

    A subclass fills `_out_features`, `_out_feature_channels` and `_out_feature_strides`, or
    defines `output_shape` itself.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return feature maps by name."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {k: ShapeSpec(channels=channels[k], stride=strides[k]) for k in self._out_features}
