"""The entry point that the detectron2 ecosystem expects; all metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Files beside the package that an installed one needs; `cat_seg.resources` finds them there too.
PROJECT_FILES = ("configs/*.yaml", "datasets/*.json")


class BuildWithProjectFiles(build_py):
    """Copy the configs and class lists into the wheel, as `cat_seg/_project`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they are read in place
            return
        target = Path(self.build_lib, "cat_seg", "_project")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for pattern in PROJECT_FILES:
            for source in ROOT.glob(pattern):
                copy = target / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithProjectFiles})
