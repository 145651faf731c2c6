"""Recipes: YAML files over a base, held to the types of the configuration classes. Never imports torch by itself."""

from layerroute.recipe.recipe import Recipe, dump_recipe, load_recipe, recipe_to_dict
from layerroute.recipe.shipped import find_recipe, is_study, shipped_folder, shipped_recipes, shipped_studies

__all__ = [
    "Recipe",
    "dump_recipe",
    "find_recipe",
    "is_study",
    "load_recipe",
    "recipe_to_dict",
    "shipped_folder",
    "shipped_recipes",
    "shipped_studies",
]
