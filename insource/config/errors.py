"""The ways in which a stage ends badly and says so in words. Apart, so that --help imports no more than this."""


class RecipeError(Exception):
    """A mistake of the person who wrote the recipe, the data or the call: told without a traceback, exit code 2."""


class StageError(Exception):
    """A stage failed though recipe and call are right: told without a traceback, exit code 1."""


class GateError(StageError):
    """A stage would go on with what is not as it must be, and does not: told without a traceback, exit code 3."""
