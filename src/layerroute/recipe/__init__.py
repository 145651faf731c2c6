"""Recipes: YAML files over a base, held to the types of the configuration classes. Never imports torch by itself."""

from layerroute.recipe.recipe import (
    Recipe,
    dump_recipe,
    load_recipe,
    merge_overrides,
    overridden_keys,
    recipe_to_dict,
)
from layerroute.recipe.shipped import (
    as_given,
    find_recipe,
    kind_of_file,
    shipped_folder,
    shipped_recipes,
    shipped_studies,
    shipped_task_lists,
)

__all__ = [
    "Recipe",
    "as_given",
    "dump_recipe",
    "find_recipe",
    "kind_of_file",
    "load_recipe",
    "merge_overrides",
    "overridden_keys",
    "recipe_to_dict",
    "shipped_folder",
    "shipped_recipes",
    "shipped_studies",
    "shipped_task_lists",
]
