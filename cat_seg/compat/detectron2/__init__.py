"""A stand-in for detectron2: the part of its public API that CAT-Seg uses, in pure Python.

Names, signatures, file formats, log lines and metrics are those of detectron2
(https://github.com/facebookresearch/detectron2); the code is not. It is meant to be imported as
`detectron2`, see `cat_seg.compat`. What CAT-Seg does not use is not here.
"""

__version__ = "0.6+cat_seg"
