"""A base model on the hub: the commit that its name stands for, and its small files.

    acme/model-7b, revision None or a branch  ->  pin_commit  ->  acme/model-7b at 607a30d7...

Repositories on the hub change. A run reads tokenizer, configuration and weights of one commit, is resumed with it, and
is served with it. transformers 5.19 resolves a branch at each load and does not say to which commit.
"""

from pathlib import Path

from insource.config.errors import RecipeError
from insource.config.schema.train import Model


def pin_commit(model: Model) -> Model:
    """Return the model with the commit of its revision, the default branch if it has none; a folder is unchanged.

    If the hub cannot be reached, the commit is the one in the local cache. Raise RecipeError if there is no such model
    or revision, if the hub denies access, or if it cannot be reached and nothing is cached.
    """
    if Path(model.base).is_dir():
        return model
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    try:
        commit = HfApi().resolve_revision(model.base, revision=model.revision).resolved
    except RevisionNotFoundError:
        raise RecipeError(
            f"model.revision: {model.base} has no revision {model.revision} on the hub; give a branch, a tag or a "
            "commit of its page under History",
            code="INS-T001",
        ) from None
    except GatedRepoError:
        problem = "it is gated: accept its terms on its page, then log in (`hf auth login`)"
    except RepositoryNotFoundError:
        problem = "no such repository, or a private one: log in to the hub (`hf auth login`) to see yours"
    except RevisionResolutionError as error:
        raise RecipeError(_unreachable_message(model, error.__cause__ or error), code="INS-T001") from None
    except (HfHubHTTPError, ValueError) as error:
        problem = str(error).strip().partition("\n")[0]
    else:
        return model.model_copy(update={"revision": commit})
    raise RecipeError(not_found_message(model, problem), code="INS-T001")


def not_found_message(model: Model, problem: object) -> str:
    """Return the error message for a base model, or its tokenizer, that cannot be loaded."""
    reason = str(problem).strip().partition("\n")[0]
    if Path(model.base).is_dir():
        return f"model.base: {model.base} cannot be loaded: {reason}"
    return (
        f"model.base: {model.base} is neither on this machine nor on the hub: {reason}\n"
        "  Give a folder, log in to the hub (gated models), or take model.base=pocket to try the pipeline."
    )


def list_files(model: Model) -> set[str] | None:
    """Return the file names of a base, None if it is neither a folder nor a reachable repository."""
    if (folder := Path(model.base)).is_dir():
        return {path.name for path in folder.iterdir()}
    from huggingface_hub import HfApi

    try:
        return set(HfApi().list_repo_files(model.base, revision=model.revision))
    except Exception:  # noqa: BLE001, its errors of the network have no common class; callers have an error already
        return None


def find_file(model: Model, name: str) -> Path | None:
    """Return a small file of a base, downloaded from the hub if needed; None if the base does not have it.

    Raise RecipeError if the hub cannot be reached and the cache does not tell.
    """
    if (folder := Path(model.base)).is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model.base, name, revision=model.revision))
    except LocalEntryNotFoundError as error:
        if _is_known_to_be_absent(model, name):
            return None
        raise RecipeError(_unreachable_message(model, error.__cause__ or error, name), code="INS-T001") from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecipeError(not_found_message(model, error), code="INS-T001") from None


def _is_known_to_be_absent(model: Model, name: str) -> bool:
    """Return whether the hub said once that this commit does not have the file."""
    from huggingface_hub import _CACHED_NO_EXIST, get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    if try_to_load_from_cache(model.base, name, revision=model.revision) is _CACHED_NO_EXIST:
        return True
    try:
        return name not in {file.path for file in get_cached_repo_tree(model.base, revision=model.revision)}
    except CachedRepoTreeNotFoundError:
        return False


def _unreachable_message(model: Model, error: BaseException, name: str | None = None) -> str:
    """Return the error message for a base, or one file of it, that is not cached and cannot be downloaded."""
    missing = f"{name} of {model.base}" if name else model.base
    return (
        f"model.base: {missing} is not in the cache of this machine, and the hub cannot be reached: {error}\n"
        f"  Download it where there is a network (`hf download {model.base}`) and give the folder, or take "
        "model.base=pocket to try the pipeline."
    )
