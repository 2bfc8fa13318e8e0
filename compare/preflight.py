"""What can be known of a comparison before anybody is paid and before the test set is read, checked for all baselines.

in   a file of answers that has an id twice, a model whose price is unknown
out  RecipeError: both, each with what would do; nothing is asked, and the ledger has no opening

Whom the data may not reach, and for whom there is no key, is left out by `systems.not_run` and listed as not run. What
is checked here ends the comparison.
"""

from collections.abc import Callable, Iterator, Sequence

from compare import answers_file, prices
from compare.systems import System
from recipes.errors import RecipeError
from recipes.schema import Recipe

Check = Callable[[Recipe, Sequence[System]], Iterator[str]]


def check(recipe: Recipe, running: Sequence[System]) -> None:
    """Raises RecipeError with everything that would end the comparison of these systems later on."""
    for checks in (FREE, PAID):
        if mistakes := [told for one in checks for told in one(recipe, running)]:
            raise RecipeError("\n".join(mistakes))


def unknown_prices(recipe: Recipe, running: Sequence[System]) -> Iterator[str]:
    """Yields the closed models whose price is unknown."""
    yield from prices.unknown([one.baseline for one in running if one.kind == "closed" and one.baseline])


def unusable_files(recipe: Recipe, running: Sequence[System]) -> Iterator[str]:
    """Yields why a file of answers cannot be used, as far as that shows without the test rows."""
    for one in running:
        if one.kind == "file" and one.baseline:
            try:
                answers_file.read(one.baseline, answers_file.rules_of(recipe))
            except RecipeError as error:
                yield str(error)


FREE: Sequence[Check] = (unknown_prices, unusable_files)
# Checks that ask a provider something, with a train row: they are made only where no free one finds anything.
PAID: Sequence[Check] = ()
