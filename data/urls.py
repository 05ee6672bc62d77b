"""Images and streams at URLs, with the standard library: what `--source https://...` names.

Nothing that comes from a server is run, and no more than `MAX_BYTES` of it are kept.
"""

import base64
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data.images import IMAGE_SUFFIXES
from utils.errors import UserError
from utils.log import plural

URL = re.compile(r"(https?|rtsps?|rtmps?)://[^/?#]", re.IGNORECASE)
TIMEOUT = 10.0  # seconds that a server may be silent
MAX_SECONDS = 60.0  # of a download
MAX_BYTES = 100_000_000  # of an image


def is_url(source: str) -> bool:
    """Return whether `source` is the URL of an image or a stream."""
    return URL.match(source) is not None


def is_http(url: str) -> bool:
    """Return whether a URL is one that `open_url` can open."""
    return url.lower().startswith(("http://", "https://"))


def without_password(url: str) -> str:
    """Return the URL without a user's name and password, for messages and files."""
    return re.sub(r"^(\w+://)[^/?#]*@", r"\1", url)


def url_name(url: str) -> str:
    """Return the name of a file for what is at the URL: the end of its path, or its host."""
    path = re.split(r"[?#]", without_password(url).partition("://")[2])[0]
    return path.rstrip("/").rpartition("/")[2].replace(":", "_")[-100:]


def fetch_image(url: str) -> bytes | None:
    """Return the file of the image at a URL, None if a stream is there.

    It is an image by the suffix, or else by what the server says. Raises UserError if an image
    cannot be downloaded.
    """
    if not is_http(url):
        return None
    is_image = Path(url_name(url)).suffix.lower() in IMAGE_SUFFIXES
    try:
        response = open_url(url)
    except UserError:
        if is_image:
            raise
        return None  # OpenCV knows more ways to ask a server
    with response:
        is_image = is_image or response.headers.get_content_maintype() == "image"
        return _download(url, response) if is_image else None


def open_url(url: str) -> HTTPResponse:
    """Return the answer to a request for an http or https URL. Raises UserError if there is none.

    A user's name and password in the URL are sent as basic authentication, to its own host only.
    """
    address = without_password(url)
    headers = {"User-Agent": "Mozilla/5.0 (compatible; detect.py)"}
    if credentials := re.match(r"^\w+://([^/?#]*)@", url):
        token = base64.b64encode(unquote(credentials[1]).encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    try:
        request = urllib.request.Request(address, headers=headers)
        return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = _reason(getattr(error, "reason", error))
    raise UserError(f"{address}: cannot be read: {reason}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, without the password to another host, or from https to http."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> Any:
        """Return the next request, as the base class does."""
        redirected = super().redirect_request(req, *answer)
        old, new = urlsplit(req.full_url), urlsplit(redirected.full_url)
        if old.netloc.lower() != new.netloc.lower() or old.scheme > new.scheme:
            redirected.remove_header("Authorization")
        return redirected


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: no server may lead to a file of this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _download(url: str, response: HTTPResponse) -> bytes:
    address, content, end = without_password(url), bytearray(), time.monotonic() + MAX_SECONDS
    expected = response.length  # None if the server does not say
    too_large = f"{address}: larger than the {MAX_BYTES / 1e6:g} MB that are read of an image"
    if expected and expected > MAX_BYTES:
        raise UserError(too_large)
    while True:
        try:
            part = response.read1(1 << 16)
        except (OSError, HTTPException) as error:
            raise UserError(_broke_off(address, len(content), expected, _reason(error))) from None
        content += part
        if len(content) > MAX_BYTES:
            raise UserError(too_large)
        if not part:
            break
        if time.monotonic() > end:
            reason = f"not done after {plural(round(MAX_SECONDS), 'second')}"
            raise UserError(_broke_off(address, len(content), expected, reason))
    if expected and len(content) < expected:
        raise UserError(_broke_off(address, len(content), expected, "the server closed it"))
    return bytes(content)


def _broke_off(address: str, count: int, expected: int | None, reason: str) -> str:
    of = f" of {expected}" if expected else ""
    return f"{address}: broke off after {count}{of} bytes: {reason}"


def _reason(error: object) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text or type(error).__name__
