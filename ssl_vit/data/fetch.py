"""Files from other machines: through fsspec, with retries, complete only once they are verified.

The only module that imports fsspec. Which errors are worth another try is decided here: a file that
does not exist or may not be read is an error at once, everything else may be the network's.
"""

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_vit.data.index_file import MOST_INDEX_BYTES, Shard
from ssl_vit.data.urls import local_path, scheme_of
from ssl_vit.errors import OF_DISKS, UserError, one_line
from ssl_vit.files import hash_file

ATTEMPTS = 8
"""Tries for one file; with the pauses between them they bridge an outage of two minutes."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
FIRST_ATTEMPTS = 3
"""Tries for the first file of an interactive command, whose address may be mistyped."""
_COMMAND_ATTEMPTS = 3  # commands seldom fail only temporarily
_CONNECT_SECONDS = 30.0
# A connection with fewer bytes than this in this time counts as stalled.
_STALL_SECONDS, _STALL_BYTES = 60.0, 60_000

# Scheme → the package it needs, and the extra that installs it.
_NEEDS = {
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
}
# Errors that another try cannot fix.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_STATUS = (400, 401, 403, 404, 405, 410)

Report = Callable[[str], None]


def say(line: str) -> None:
    """The default report: a line on standard error."""
    print(one_line(line), file=sys.stderr, flush=True)


class _OtherBytesError(OSError):
    """The download is complete but does not match the index."""


def fetch_shard(shard: Shard, target: Path, attempts: int = ATTEMPTS, report: Report = say) -> None:
    """Download a shard and compare it with its index.

    Args:
        target: Written; has the whole shard when this returns, any content when it raises.
        attempts: Tries before giving up.
        report: Called with a line about each failed try.

    Raises:
        UserError: It cannot be fetched, or does not match its index; names it.
        OSError: ``target`` cannot be written, with ``errno.ENOSPC`` if the disk is full.
    """

    def fetch_and_compare() -> None:
        fetch_file(shard.url, target, shard.num_bytes)
        size = target.stat().st_size
        if size != shard.num_bytes:
            raise OSError(f"received {size:,} of {shard.num_bytes:,} bytes")
        if (found := hash_file(target)) != shard.sha256:
            raise _OtherBytesError(
                f"its bytes do not match its index (sha256 differs: {found[:8]}…, not "
                f"{shard.sha256[:8]}…)"
            )

    try_often(shard.url, fetch_and_compare, attempts, report)


def fetch_bytes(url: str, attempts: int = ATTEMPTS, report: Report = say) -> bytes:
    """The content of a remote file of at most ``MOST_INDEX_BYTES``.

    Raises:
        UserError: It cannot be fetched; names it.
        FileNotFoundError: The server has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="ssl-vit-") as folder:
        copy = Path(folder) / "copy"
        try_often(
            url, lambda: fetch_file(url, copy, MOST_INDEX_BYTES), attempts, report, absent_ok=True
        )
        return copy.read_bytes()


def try_often(
    url: str,
    work: Callable[[], None],
    attempts: int = ATTEMPTS,
    report: Report = say,
    absent_ok: bool = False,
) -> None:
    """Do the work; after errors that may be temporary, retry with growing pauses.

    Args:
        url: For messages.
        absent_ok: Let FileNotFoundError through instead of explaining it.

    Raises:
        UserError: It failed for good.
        OSError: A local disk is full or cannot be written.
    """
    if scheme_of(url) == "pipe":
        attempts = min(attempts, _COMMAND_ATTEMPTS)
    pause, before = _FIRST_PAUSE, ""
    for attempt in range(1, attempts + 1):
        try:
            work()
            return
        except UserError:
            raise
        except Exception as error:  # each filesystem raises its own
            if isinstance(error, FileNotFoundError) and absent_ok:
                raise
            if isinstance(error, OSError) and error.errno in OF_DISKS:
                raise
            problem = _describe(error)
            # Bytes may be corrupted on their way, but not twice in the same way.
            is_final = _is_final(error) or (
                isinstance(error, _OtherBytesError) and problem == before
            )
            before = problem
            if is_final or attempt == attempts:
                tries = "" if is_final else f" after {attempts} tries"
                raise UserError(f"cannot fetch {url}{tries}: {problem}", _remedy(error)) from error
            # Up to half longer, so that a thousand processes do not retry at the same moment.
            pause_now = pause * (1 + random.random() / 2)
            report(f"{url}: {problem}; try {attempt + 1} of {attempts} in {pause_now:.1f} s")
            time.sleep(pause_now)
            pause = min(2 * pause, _LONGEST_PAUSE)


def fetch_file(url: str, target: Path, most_bytes: float = math.inf) -> None:
    """Download once, without checking the content.

    Args:
        most_bytes: A longer response is aborted; a command's output and a local file are not.
    """
    match scheme_of(url):
        case "pipe":
            command = url.removeprefix("pipe:")
            with target.open("wb") as file:
                done = subprocess.run(
                    command, shell=True, stdout=file, stderr=subprocess.PIPE, check=False
                )
            if done.returncode:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                reason = f": {lines[-1]}" if lines else ""
                raise OSError(f"the command ended with exit code {done.returncode}{reason}")
        case "" | "file":
            _filesystem(url).get_file(str(local_path(url)), str(target))
        case _:
            _filesystem(url).get_file(url, str(target), callback=_download_guard(most_bytes))


def _filesystem(url: str) -> Any:
    import importlib.util

    import fsspec

    scheme = scheme_of(url) or "file"
    module, extra = _NEEDS.get(scheme, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise UserError(
            f"{url} needs the package {module}, which is not installed",
            f'pip install "ssl-vit[{extra}]"',
        )
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        # aiohttp's own limit is five minutes for a whole file, whatever its size.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_STALL_SECONDS
        )
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        options["endpoint_url"] = endpoint
    return fsspec.filesystem(scheme, **options)


def _download_guard(most_bytes: float) -> Any:
    from fsspec.callbacks import Callback

    class Watch(Callback):
        """Ends a download that is too long or nearly stalled; a socket's own timeout starts again
        with every byte.
        """

        def __init__(self) -> None:
            super().__init__()
            self.since, self.received, self.total = time.monotonic(), 0, 0

        def relative_update(self, inc: int = 1) -> None:
            self.received += inc
            self.total += inc
            if self.total > most_bytes:
                raise OSError(f"received more than {most_bytes:,} bytes")
            seconds = time.monotonic() - self.since
            if seconds < _STALL_SECONDS:
                return
            if self.received < _STALL_BYTES:
                raise TimeoutError(f"received only {self.received:,} bytes in {seconds:.0f} s")
            self.since, self.received = time.monotonic(), 0

    return Watch()


def _is_final(error: Exception) -> bool:
    if _is_garbled(error):
        return False
    known = isinstance(error, _FINAL) or _is_of_address(error)
    return known or getattr(error, "status", None) in _FINAL_STATUS


def _is_of_address(error: Exception) -> bool:
    """Whether the URL is not valid; answers and certificates raise other kinds of ValueError."""
    return isinstance(error, ValueError) and not isinstance(error, (OSError, json.JSONDecodeError))


def _is_garbled(error: Exception) -> bool:
    """Whether the response was invalid HTTP, which aiohttp reports as status 400, as if the server
    had sent it. On a kept connection, bytes left over from an earlier body look like this.
    """
    has_status = getattr(error, "status", None) is not None
    return has_status and type(error.__cause__).__module__.startswith("aiohttp.http")


def _describe(error: Exception) -> str:
    if _is_garbled(error):
        return "the server sent an invalid HTTP response"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if _is_of_address(error):
        return "the URL is not valid"
    if (status := getattr(error, "status", None)) is not None:
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    text = str(error).splitlines()
    return text[0] if text and text[0] else type(error).__name__


def _remedy(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "check the address; an index may name shards that were moved"
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return "log in to that store as its own tools do (environment variables, profile, token)"
    if isinstance(error, _OtherBytesError):
        return (
            "the shard has changed since it was indexed: fetch the set's index again, or make one "
            "with  ssl-vit shards index"
        )
    return "check the address and the network, then run the same command again to continue"
