"""The service as an ASGI app. Making it does no work; its first requests do."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from study.errors import UserError
from study.service import models, pages, reading, schemas, writing
from study.service.core import ERRORS, Core
from study.service.desk import UnknownStudyError
from study.service.drivers import ConflictError
from study.service.flights import SlowError
from study.service.gate import Gate
from study.service.models import BusyError
from study.service.settings import ServiceSettings

_log = logging.getLogger(__name__)
_ABOUT = """Follow studies, launch them from registered spaces, stop, resume and extend them, ask for their fronts and models.

Where the service has a token, every request under `/api` bears it: `Authorization: Bearer TOKEN`. What is not answered says why
in one sentence: `{"error": "..."}`."""


def make_app(settings: ServiceSettings) -> FastAPI:
    """Make the service; `Gate` stands before everything."""
    app = FastAPI(
        title="Narrow Study",
        description=_ABOUT,
        version=_version(),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,  # both pages take their scripts from elsewhere
        lifespan=_lifespan,
    )
    app.state.core = Core(settings)
    for router in (reading.router, models.router, writing.router, pages.router):
        app.include_router(router)
    app.add_api_route("/healthz", _healthz, tags=["reading"], responses={status: ERRORS[status] for status in (403, 429)})
    app.add_middleware(Gate, settings=settings)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


async def _healthz() -> schemas.Health:
    """Whether the service is up; it takes no token."""
    return schemas.Health(status="ok")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What the first visitor would wait for is begun at once; threads that still read are not waited for."""
    core: Core = app.state.core
    core.readers.submit(_import_mlflow)
    yield
    for workers in (core.readers, core.writers):
        workers.shutdown(wait=False, cancel_futures=True)


def _import_mlflow() -> None:
    import study.asking.run_index  # noqa: F401


def _version() -> str:
    try:
        return version("narrow-study")
    except PackageNotFoundError:  # run from a folder of its sources
        return "0"


def _say(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers={"Cache-Control": "no-store", **(headers or {})})


async def _on_mistake(_: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, UnknownStudyError) else 409 if isinstance(error, ConflictError) else 400
    return _say(status, str(error))


async def _on_form(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return _say(
        422, f"a request must have the form that /api/v1/openapi.json describes, but of {place}: {first['msg']}; mend that"
    )


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    remedy = "see /api/v1/openapi.json for what there is"
    sentence = f"a request must be one that this service knows, but it is not ({str(error.detail).lower()}); {remedy}"
    return _say(error.status_code, sentence, dict(error.headers or {}))


async def _on_slow(_: Request, error: Exception) -> Response:
    return _say(503, "an answer must be there in seconds, but MLflow or the disk is slow; try again later", {"Retry-After": "5"})


async def _on_busy(_: Request, error: Exception) -> Response:
    return _say(429, str(error), {"Retry-After": "5"})


async def _on_bug(_: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return _say(500, "this service must answer, but it failed; its own log says where")


_HANDLERS = {
    UserError: _on_mistake,
    ConflictError: _on_mistake,
    RequestValidationError: _on_form,
    HTTPException: _on_http,
    SlowError: _on_slow,
    BusyError: _on_busy,
    Exception: _on_bug,
}
