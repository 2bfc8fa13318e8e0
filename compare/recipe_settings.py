"""The recipe of a comparison: the recipe of the run with current settings for serving, comparing and deciding."""

from insource.config.load import LoadedRecipe
from insource.config.recipe import Recipe
from insource.tracking.run import Run

SECTIONS = ("compare", "cost", "decide", "route", "privacy", "serve")


def merge_recipe_settings(loaded: LoadedRecipe, trained_run: Run) -> Recipe:
    """Return the recipe of the run, with the sections SECTIONS taken from the current recipe."""
    return trained_run.recipe().model_copy(update={name: getattr(loaded.recipe, name) for name in SECTIONS})
