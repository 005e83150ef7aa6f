"""The page: `cat-seg app`, by gradio (the extra `[web]`)."""

from cat_seg.app.page import build, launch

__all__ = ["build", "launch"]
