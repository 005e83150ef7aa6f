"""Logging, events, processes, files and drawing."""
