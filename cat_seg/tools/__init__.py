"""Commands: python -m cat_seg.tools.NAME."""
