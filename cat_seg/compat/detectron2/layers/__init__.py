"""What is known of a feature map before there is one."""

from .shape_spec import ShapeSpec

__all__ = ["ShapeSpec"]
