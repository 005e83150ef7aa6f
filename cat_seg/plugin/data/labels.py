"""What the labels of a registered data set mean."""

from __future__ import annotations

from detectron2.data import MetadataCatalog

from cat_seg.label_rules import LabelRule


def label_rule(name: str, num_classes: int | None) -> LabelRule:
    """Return the rule of a data set: its metadata's ("label_rule"), else what all others mean.

    Args:
        name: registered with detectron2.
        num_classes: of a data set without a rule of its own; None where they are not known.
    """
    metadata = MetadataCatalog.get(name)
    rule: LabelRule | None = metadata.get("label_rule")
    ignore = metadata.get("ignore_label", 255)
    return rule or LabelRule(num_classes, ignore=() if ignore is None else (ignore,))
