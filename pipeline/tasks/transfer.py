"""Download files over HTTP; a dropped connection or a killed process loses nothing."""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from pipeline.utils.atomic import make_folder, write_text
from pipeline.utils.errors import UserError

ATTEMPTS = 5  # in a row without a new byte
LONGEST_PAUSE_S = 30.0
TIMEOUT_S = 30.0
BLOCK_BYTES = 1 << 18
RANGE_NOT_SATISFIABLE = 416
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, RANGE_NOT_SATISFIABLE})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Origin:
    """Origin of a partial file, stored beside it as JSON.

    Attributes:
        url: the file's address.
        validator: the strong ETag, or the modification date, that identifies the version (RFC 9110, section 8.8).
        total: size of the whole file in bytes, if the server gave it.
    """

    url: str
    validator: str
    total: int | None


def download(url: str, part: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Download ``url`` to ``part``, continuing a partial file of an earlier call or process.

    A partial file is continued only if the server proves that it serves the same version of the file (``If-Range``).
    Otherwise the download restarts from the first byte. On return, ``part`` is complete according to the server. The
    caller must check that it is the right file, and ``discard`` it after use.

    Args:
        url: an http or https address.
        part: the file to write; its origin is stored beside it, as ``<part>.json``.
        sleep: waits between attempts; the pause doubles from 1 s to ``LONGEST_PAUSE_S``.

    Raises:
        UserError: the server refuses, or ``ATTEMPTS`` attempts in a row brought no new bytes. ``part`` stays; the next
            call continues it.
        OSError: ``part`` cannot be written.
    """
    make_folder(part.parent)
    failures, most = 0, 0
    while True:
        try:
            return _continue(url, part)
        except HTTPError as error:
            error.close()
            if error.code == RANGE_NOT_SATISFIABLE:
                discard(part)
            if error.code not in TRANSIENT_STATUS:
                raise UserError(f"{url}: HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            reason = str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
        size = _size(part)
        failures, most = (1, size) if size > most else (failures + 1, most)
        if failures >= ATTEMPTS:
            raise UserError(f"{url}: {reason} ({ATTEMPTS} attempts without progress)")
        pause = min(2.0 ** (failures - 1), LONGEST_PAUSE_S)
        log.warning("%s: %s; trying again in %.0f s", url, reason, pause)
        sleep(pause)


def discard(part: Path) -> None:
    """Remove ``part`` and the file with its origin, if they exist."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _continue(url: str, part: Path) -> None:
    """Make one attempt to download.

    Raises:
        HTTPException: the connection ended early, or the server sent another range than requested.
    """
    origin = _read_origin(url, part)
    offset = _size(part) if origin else 0
    if origin and offset == origin.total:
        return
    headers = {"User-Agent": "flowtune", "Accept-Encoding": "identity"}
    if origin and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": origin.validator}
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as response:
        if response.status == 206:
            if origin is None or not _continues(response, origin, offset):
                discard(part)
                raise HTTPException("the server sent a part of another version of the file")
            total = origin.total
        else:
            offset, total = 0, _content_length(response)
            # In this order, a kill in between never leaves old bytes beside the origin of a new version.
            part.write_bytes(b"")
            _write_origin(url, part, response)
        _receive(response, part, offset, total)


def _continues(response: HTTPResponse, origin: _Origin, offset: int) -> bool:
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != offset:
        return False
    same_size = span[2] == "*" or origin.total is None or int(span[2]) == origin.total
    return same_size and _validator(response) in (None, origin.validator)


def _receive(response: HTTPResponse, part: Path, offset: int, total: int | None) -> None:
    bar = tqdm(total=total, initial=offset, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    with bar, part.open("ab") as file:
        while block := response.read1(BLOCK_BYTES):
            file.write(block)
            bar.update(len(block))
    # http.client raises nothing when a body read in blocks ends early.
    if total is not None and _size(part) != total:
        raise HTTPException(f"the connection ended after {_size(part)} of {total} bytes")


def _validator(response: HTTPResponse) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak ETag may stand for different bytes
        return etag
    return response.headers.get("Last-Modified")


def _content_length(response: HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _write_origin(url: str, part: Path, response: HTTPResponse) -> None:
    validator = _validator(response)
    if validator is None:  # then no later attempt can prove that it continues the same version
        _notes(part).unlink(missing_ok=True)
        return
    write_text(_notes(part), json.dumps(asdict(_Origin(url, validator, _content_length(response)))))


def _read_origin(url: str, part: Path) -> _Origin | None:
    """Return the origin of ``part``; None if it is unknown or its address is not ``url``."""
    try:
        origin = _Origin(**json.loads(_notes(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return origin if origin.url == url else None


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
