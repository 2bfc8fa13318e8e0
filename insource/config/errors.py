"""Exceptions with a message for the user. They have a module of their own, so that --help imports nothing else."""


class RecipeError(Exception):
    """An error in recipe, data or call, printed without a traceback; exit code 2."""


class StageError(Exception):
    """A stage failed with a valid recipe and call, printed without a traceback; exit code 1."""


class GateError(StageError):
    """A check failed, so the stage stopped, printed without a traceback; exit code 3."""
