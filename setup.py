"""The one build step that pyproject.toml cannot say: the recipes at the top of the repository go into the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies ``recipes/`` to ``layerroute/recipes``; an editable install reads them where they are."""

    def run(self) -> None:
        """Build as usual, then copy; what an older build left behind goes."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "layerroute" / "recipes"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree("recipes", target, ignore=lambda _, names: [n for n in names if n.startswith(".")])


setup(cmdclass={"build_py": BuildWithRecipes})
