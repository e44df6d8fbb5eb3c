"""Whether the hub has a model's weights, asked before anything is started.

vLLM and the libraries below it ask many times, each with patience of its own, and end with
whatever they found last. One bounded question answers at once.
"""

import importlib
import os
from typing import Any

from cortex_core.errors import ModelLoadFailedError, NotFoundError

_ANSWER_S = 5.0
"""Time that the hub gets to take the connection, and then to answer."""


def is_offline() -> bool:
    """Return whether the operator has forbidden to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def check_hub(model: str, revision: str) -> None:
    """Ask the hub for a model; blocks, for as long as names are resolved.

    Args:
        model: its id on the hub.
        revision: branch, tag or commit.

    Raises:
        NotFoundError: the hub has no such model or revision, or does not show it to us.
        ModelLoadFailedError: the hub cannot be reached or does not work.
    """
    # Not by a statement: it is there only with vLLM, and changes what it exports.
    hub: Any = importlib.import_module("huggingface_hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")
    try:
        hub.HfApi().model_info(model, revision=revision, timeout=_ANSWER_S)
    except errors.GatedRepoError:
        raise NotFoundError(
            f"the hub does not give {model!r} to everybody: accept its terms there and set "
            "HF_TOKEN for this node"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(f"{model!r} has no revision {revision!r} on the hub") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise NotFoundError(
            f"there are no weights for {model!r}: the hub has no such model, or HF_TOKEN is "
            "needed to see it"
        ) from None
    except errors.HfHubHTTPError as error:
        raise unreachable(model, f"it answers with status {error.response.status_code}") from None
    except (errors.HTTPError, OSError) as error:
        # The base class of what the hub's HTTP client raises comes with the errors.
        raise unreachable(model, str(error) or type(error).__name__) from None


def unreachable(model: str, reason: str) -> ModelLoadFailedError:
    """Return the error of a load that needs the hub, which is out of reach."""
    return ModelLoadFailedError(
        f"there are no weights for {model!r} in this node's hub cache, and the hub cannot be "
        f"asked: {reason[:200]}"
    )
