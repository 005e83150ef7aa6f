"""Configuration: defaults, YAML files with inheritance, and construction from a config."""

from .config import CfgNode, configurable, get_cfg

__all__ = ["CfgNode", "configurable", "get_cfg"]
