"""Label many pictures, on one machine or many, each exactly once.

A source is cut into units (`sources`): some pictures, a tar shard, a Parquet file. A unit's labels
are written (`outputs`), each file whole or not at all, and then a record of the unit: what has a
record is done. Whoever does a unit again writes the same bytes, so that workers may be lost, and
several machines may share a folder.
"""

from cat_seg.labelling.job import Job, Labeller, Progress, label, open_job, progress
from cat_seg.labelling.outputs import FORMATS
from cat_seg.labelling.sources import Unit, find_units

__all__ = [
    "FORMATS",
    "Job",
    "Labeller",
    "Progress",
    "Unit",
    "find_units",
    "label",
    "open_job",
    "progress",
]
