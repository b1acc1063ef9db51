"""The page for the browser: our HTML, CSS and script, and plotly.js as the installed package has it. Nothing from elsewhere."""

import hashlib
import html
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from study.reporting.report_style import CSS
from study.service.core import Answer
from trainables.charts import PALETTE

router = APIRouter(include_in_schema=False)
_KINDS = {"page.js": "text/javascript", "page.css": "text/css", "plotly.min.js": "text/javascript"}
_A_DAY = "private, max-age=86400"


@lru_cache
def _file(name: str) -> Answer:
    """A file of the page; its colours and tables are those of the reports."""
    own = files("study.service") / "page"
    if name == "plotly.min.js":
        body = (files("plotly") / "package_data" / name).read_bytes()
    elif name == "page.css":
        colors = "".join(f"--color-{place}: {color}; " for place, color in enumerate(PALETTE))
        body = f"{CSS}\n:root {{ {colors}}}\n{(own / name).read_text(encoding='utf-8')}".encode()
    else:
        body = (own / name).read_bytes()
    return Answer(body, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


@lru_cache
def _page(asks_token: bool) -> Answer:
    """The page; its files' addresses change with them, so that a browser may keep them."""
    text = (files("study.service") / "page" / "index.html").read_text(encoding="utf-8")
    for name in ("page.js", "page.css"):
        text = text.replace(f"static/{name}", f"static/{name}?{_file(name).etag[1:13]}")
    text = text.replace("static/plotly.min.js", f"static/plotly.min.js?{html.escape(version('plotly'))}")
    body = text.replace('data-token="no"', f'data-token="{"yes" if asks_token else "no"}"').encode()
    return Answer(body, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


def _send(request: Request, found: Answer, kind: str, keep: str) -> Response:
    headers = {"ETag": found.etag, "Cache-Control": keep}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.body, media_type=kind, headers=headers)


@router.get("/")
def show_page(request: Request) -> Response:
    """The page."""
    asks_token = request.app.state.core.settings.token is not None
    return _send(request, _page(asks_token), "text/html", "private, no-cache")


@router.get("/static/{name}")
def show_file(request: Request, name: str) -> Response:
    """A file of the page, one of three."""
    if name not in _KINDS:
        return Response(status_code=404)
    return _send(request, _file(name), _KINDS[name], _A_DAY)


@router.get("/favicon.ico")
def show_no_icon() -> Response:
    """Browsers ask for one."""
    return Response(status_code=204)
