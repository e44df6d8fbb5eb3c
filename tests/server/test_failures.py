"""Whatever an app raises becomes an answer in the caller's dialect, or a visible break."""

import logging

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cortex_core.errors import ModelNotFoundError, OverloadedError, RequestError
from cortex_core.server.failures import exception_handlers
from tests.server.apps import START, chunk
from tests.server.harness import get, post, request, serving

SECRET = "the insides of the process"


def raising(error: Exception, *, after: int = 0, length: int | None = None) -> ASGIApp:
    """Return a plain app that raises after `after` messages of its answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if after:
            headers = [] if length is None else [(b"content-length", str(length).encode())]
            await send({**START, "headers": headers})
            await send(chunk(b"data: begin\n\n"))
        raise error

    return app


def starlette_raising(error: Exception) -> ASGIApp:
    """Return a Starlette app whose endpoint raises."""

    async def endpoint(http: Request) -> Response:
        raise error

    routes = [Route(path, endpoint, methods=["GET"]) for path in PATHS]
    app = Starlette(routes=routes, exception_handlers=exception_handlers())
    app.router.redirect_slashes = False
    return app


PATHS = {"/v1/chat/completions": b'{"error":{"message"', "/v1/messages": b'{"type":"error"'}
by_framework = pytest.mark.parametrize("make", [raising, starlette_raising])
by_path = pytest.mark.parametrize(("path", "begin"), PATHS.items())


@by_framework
@by_path
async def test_our_errors_are_rendered(
    make: "type", path: str, begin: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """contracts.md, errors: one table, two faces; and they are no bugs of ours."""
    async with serving(make(ModelNotFoundError("gpt-9"))) as server:
        answer = await server.ask(get(path))

    assert answer.status == 404
    assert answer.body.startswith(begin)
    assert answer.headers["content-type"] == "application/json"
    assert caplog.records == []


@by_framework
async def test_headers_of_an_error_are_sent(make: "type") -> None:
    """contracts.md, errors: Retry-After."""
    async with serving(make(OverloadedError("full", retry_after_s=7))) as server:
        answer = await server.ask(get("/v1/messages"))

    assert (answer.status, answer.headers["retry-after"]) == (529, "7")


@by_framework
async def test_error_alone_in_a_group_is_the_error(make: "type") -> None:
    """Ours: task groups wrap what their tasks raise."""
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [ModelNotFoundError("gpt-9")])])
    async with serving(make(group)) as server:
        assert (await server.ask(get("/v1/messages"))).status == 404


@by_framework
@by_path
async def test_bugs_show_nothing_and_are_logged_once(
    make: "type", path: str, begin: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """contracts.md, errors: 500 with the request id and nothing else."""
    async with serving(make(ValueError(SECRET))) as server:
        answer = await server.ask(get(path, "x-request-id: req-7"))

    assert (answer.status, answer.headers["x-request-id"]) == (500, "req-7")
    assert answer.body.startswith(begin)
    assert SECRET.encode() not in answer.body
    (record,) = caplog.records
    assert record.exc_info is not None
    assert SECRET in str(record.exc_info[1])
    assert (vars(record)["request_id"], vars(record)["path"]) == ("req-7", path)


@pytest.mark.parametrize("error", [ValueError(SECRET), OverloadedError("full")])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("length", [None, 1000])
async def test_broken_answer_does_not_look_complete(
    error: Exception, version: str, length: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: no closing chunk, too few bytes, or a reset where nothing else tells them apart."""
    async with serving(raising(error, after=1, length=length)) as server:
        client = await server.connect()
        await client.send(request("GET", "/", version=version))

        was_reset = False
        while True:
            try:
                data = await client._loop.sock_recv(client.sock, 4096)
            except ConnectionResetError:
                was_reset = True
                break
            if not data:
                break
            client.buffer += data

    assert SECRET.encode() not in client.buffer
    assert not client.buffer.endswith(b"0\r\n\r\n")
    assert was_reset or version == "1.1"
    assert [record.levelno for record in caplog.records] == [
        logging.WARNING if isinstance(error, RequestError) else logging.ERROR
    ]


@by_path
async def test_unknown_path_is_told_in_the_dialect(path: str, begin: bytes) -> None:
    """contracts.md, errors: not_found; never a redirect that is built from `Host`."""
    app = starlette_raising(ValueError())
    async with serving(app) as server:
        for wrong in (f"{path}/nothing", f"{path}/", f"/{path}"):
            answer = await server.ask(get(wrong, "anthropic-version: 2023-06-01"))
            assert answer.status == 404
            assert answer.body.startswith((begin, PATHS["/v1/messages"]))


@by_path
async def test_wrong_method_is_told_in_the_dialect(path: str, begin: bytes) -> None:
    """contracts.md, errors: 405 with `Allow`."""
    async with serving(starlette_raising(ValueError())) as server:
        answer = await server.ask(post(b"{}", path))

    assert (answer.status, answer.headers["allow"]) == (405, "get, head")
    assert answer.body.startswith(begin)


async def test_other_errors_of_the_framework_are_told_in_the_dialect() -> None:
    """Ours: its own text is shown, for it is about the request."""
    async with serving(starlette_raising(HTTPException(400, "malformed form"))) as server:
        answer = await server.ask(get("/v1/messages"))

    assert answer.status == 400
    assert b'"message":"malformed form"' in answer.body
