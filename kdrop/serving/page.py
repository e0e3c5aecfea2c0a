"""The page at the server's root: what is served, and a form that asks it."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from importlib import resources

from starlette.responses import HTMLResponse

from kdrop.serving.served_model import ServedModel

PAGE = resources.files("kdrop.serving").joinpath("page.html").read_text("utf-8")


def _source(tag: str) -> str:
    """What a browser must find in the page's only element without attributes."""
    content = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)[0].encode()
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return f"{tag}-src 'sha256-{digest}'"


HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"{_source('script')}; {_source('style')}",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def page(models: Iterable[ServedModel]) -> HTMLResponse:
    """The page about these models; it needs nothing from elsewhere."""
    data = json.dumps([model.describe() for model in models]).replace("<", "\\u003c")
    return HTMLResponse(PAGE.replace("MODELS", data), headers=HEADERS)
