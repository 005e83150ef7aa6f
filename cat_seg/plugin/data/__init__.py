"""Data sets; importing this registers the published splits with detectron2's catalogs."""

from cat_seg.plugin.data.datasets import builtin as _builtin

_builtin.register_all()
