"""The service: `cat-seg serve`, by FastAPI and uvicorn (the extra `[serve]`)."""

from cat_seg.serving.batching import Batcher, Full
from cat_seg.serving.service import Limits, build, serve

__all__ = ["Batcher", "Full", "Limits", "build", "serve"]
