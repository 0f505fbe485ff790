"""Puts the recipes of configs/ into the package that is built; all else is in setup.cfg."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    """In a checkout the recipes are found beside the package, so an editable one has no copy."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = pathlib.Path(self.build_lib, "evovit_jax", "configs")
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", folder, ignore=caches, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithRecipes})
