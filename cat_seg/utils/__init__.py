"""Helpers with no knowledge of the model: files, weights, images."""
