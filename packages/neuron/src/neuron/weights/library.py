"""huggingface_hub, and what goes wrong with it in words."""

import errno
import importlib
import os
from typing import Any

from cortex_core.errors import InvalidRequestError
from neuron.weights.lines import Failed, Job, Problem


class ChecksumError(Exception):
    """What came is not what the hub promised."""


def library(part: str = "") -> Any:
    """Return huggingface_hub, or a module of it: it is there only with vLLM."""
    return importlib.import_module(f"huggingface_hub.{part}".rstrip("."))


def failure_of(error: Exception, job: Job) -> Failed:
    """Return what an exception of a download means."""
    if isinstance(error, ModuleNotFoundError):
        return Failed(
            problem=Problem.REFUSED,
            message="models cannot be downloaded here without huggingface_hub, which comes with "
            "vLLM",
        )
    errors = library("errors")
    if isinstance(error, InvalidRequestError):
        return Failed(problem=Problem.REFUSED, message=f"{job.model!r}: {error.message}")
    if isinstance(error, ChecksumError):
        return Failed(
            problem=Problem.CHECKSUM,
            message=f"{error} of {job.model!r} did not arrive as the hub has it: its checksum is "
            "another one",
        )
    if isinstance(error, errors.HfHubHTTPError | errors.HFValidationError):
        return _hub_failure(error, job)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(problem=Problem.DISK_FULL, message="the disk is full")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        reason = os.strerror(error.errno)
        return Failed(problem=Problem.OTHER, message=f"the hub cache cannot be written: {reason}")
    # The base class of what the hub's HTTP client raises comes with the errors.
    if isinstance(error, errors.HTTPError | OSError):
        reason = str(error)[:200] or type(error).__name__
        return Failed(problem=Problem.UNREACHABLE, message=reason)
    return Failed(problem=Problem.OTHER, message=type(error).__name__)


def _hub_failure(error: Exception, job: Job) -> Failed:
    """Return what the hub's own answer means."""
    errors = library("errors")
    model = repr(job.model)
    if isinstance(error, errors.GatedRepoError):
        message = (
            f"the hub does not give {model} to everybody: accept its terms there and set HF_TOKEN "
            "or harness.vllm.token_file for this node"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"{model} has no revision {job.revision!r} on the hub"
    elif isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        message = (
            f"there are no weights for {model}: the hub has no such model, or a token is needed "
            "to see it"
        )
    else:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if status not in (401, 403):
            return Failed(problem=Problem.UNREACHABLE, message=f"it answers with status {status}")
        message = (
            f"the hub does not give {model} to this node: it answers with status {status}; is the "
            "token right, and may it read the model?"
        )
    return Failed(problem=Problem.NOT_FOUND, message=message)
