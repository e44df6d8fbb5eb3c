"""The settings in force, and their reading anew: `/admin/config*`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_core.errors import InvalidRequestError, SettingsError
from cortex_gateway.api.admin_asked import answer
from cortex_gateway.ports import Configured


def routes(configured: Configured) -> list[Route]:
    """Return the routes of `/admin/config*`."""

    async def shown(_: Request) -> Response:
        return answer(configured.view())

    async def reload(_: Request) -> Response:
        try:
            return answer(await configured.reload())
        except SettingsError as error:
            raise InvalidRequestError(error.message) from None

    return [
        Route("/admin/config", shown, methods=["GET"]),
        Route("/admin/config/reload", reload, methods=["POST"]),
    ]
