"""Data sets; importing this registers those that ship with detectron2's catalogs."""

from cat_seg.plugin.data.datasets import builtin as _builtin
from cat_seg.plugin.data.datasets import rows as _rows

_builtin.register_all()
_rows.register_rows()
