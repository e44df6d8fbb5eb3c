"""The event path."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from neuron.api.stream import EventStream
from neuron.supervisor.feed import EventFeed


class EventsApi:
    """Endpoint of `/events`.

    Args:
        feed: what is listened to.
    """

    def __init__(self, feed: EventFeed) -> None:
        self._feed = feed

    def routes(self) -> list[Route]:
        """Return the path."""
        return [Route("/events", self.events, methods=["GET"])]

    async def events(self, request: Request) -> Response:
        """Stream events for as long as the caller listens."""
        return EventStream(self._feed.listen(request.headers.get("last-event-id")))
