"""From image features, text features and guidance to a logit per class and position."""

from .aggregator import Aggregator, ClassLogits, StreamedLogits

__all__ = ["Aggregator", "ClassLogits", "StreamedLogits"]
