"""How an app is wrapped before it is served."""

from starlette.types import ASGIApp

from cortex_core.server.drain import Drain
from cortex_core.server.failures import Failures
from cortex_core.server.guard import Guard
from cortex_core.server.limits import Limits
from cortex_core.server.request_id import NewRequestId, random_request_id


def protect(
    app: ASGIApp,
    *,
    drain: Drain | None = None,
    limits: Limits | None = None,
    new_request_id: NewRequestId = random_request_id,
) -> Guard:
    """Return `app` behind the guard, with its failures answered and its requests counted.

    Args:
        app: any ASGI app, Starlette's or a plain one.
        drain: counts and ends the app's requests; `None` for an app that is served to the
            last moment, such as `/metrics`.
        limits: the guard's.
        new_request_id: makes the ids of requests that bring none.
    """
    counted = app if drain is None else drain.wrap(app)
    return Guard(Failures(counted), limits, new_request_id)
