"""Files from other machines: through fsspec, with retries, never taken for whole before they are.

The only module that imports fsspec. Which errors are worth another try is decided here: a file that
is not there or may not be read is an error at once, everything else may be the network's.
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
"""Tries for one file; with the pauses between them, over two minutes of a server that is away."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
FIRST_ATTEMPTS = 3
"""Where somebody waits at the keyboard, and the address may be mistyped."""
_COMMAND_ATTEMPTS = 3  # a command seldom fails for a moment only
_CONNECT_SECONDS = 30.0
# Fewer bytes than this in such a time are taken for a connection that hangs.
_STALL_SECONDS, _STALL_BYTES = 60.0, 60_000

# Scheme → what has to be installed for it, and the extra that brings it.
_NEEDS = {
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "hf"),
}
# Trying again cannot cure these.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)
_FINAL_STATUS = (400, 401, 403, 404, 405, 410)

Report = Callable[[str], None]


def say(line: str) -> None:
    """The default report: standard error."""
    print(one_line(line), file=sys.stderr, flush=True)


class _OtherBytesError(OSError):
    """Everything came, but it is not what the index says."""


def fetch_shard(shard: Shard, target: Path, attempts: int = ATTEMPTS, report: Report = say) -> None:
    """Download a shard and compare it with its index.

    Args:
        target: Written; holds the whole shard when this returns, anything when it raises.
        attempts: Tries before it is given up.
        report: Told of every failed try.

    Raises:
        UserError: It cannot be had, or has other bytes than its index says; names it.
        OSError: ``target`` cannot be written, with ``errno.ENOSPC`` where the disk is full.
    """

    def fetch_and_compare() -> None:
        fetch_file(shard.url, target, shard.num_bytes)
        size = target.stat().st_size
        if size != shard.num_bytes:
            raise OSError(f"{size:,} of {shard.num_bytes:,} bytes came")
        if (found := hash_file(target)) != shard.sha256:
            raise _OtherBytesError(
                f"its bytes are not those of its index (sha256 differs: {found[:8]}…, not "
                f"{shard.sha256[:8]}…)"
            )

    try_often(shard.url, fetch_and_compare, attempts, report)


def fetch_bytes(url: str, attempts: int = ATTEMPTS, report: Report = say) -> bytes:
    """The content of a remote file of at most ``MOST_INDEX_BYTES``.

    Raises:
        UserError: It cannot be had; names it.
        FileNotFoundError: The server says that there is none.
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
    """Do the work, again after a pause while it fails as networks fail.

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
            # Other bytes may have been changed on their way, but not in the same way twice.
            is_final = _is_final(error) or (
                isinstance(error, _OtherBytesError) and problem == before
            )
            before = problem
            if is_final or attempt == attempts:
                tries = "" if is_final else f" after {attempts} tries"
                raise UserError(f"cannot fetch {url}{tries}: {problem}", _remedy(error)) from error
            # Up to half longer, so that a thousand processes do not come back at the same moment.
            pause_now = pause * (1 + random.random() / 2)
            report(f"{url}: {problem}; try {attempt + 1} of {attempts} in {pause_now:.1f} s")
            time.sleep(pause_now)
            pause = min(2 * pause, _LONGEST_PAUSE)


def fetch_file(url: str, target: Path, most_bytes: float = math.inf) -> None:
    """Download once, without looking at what came.

    Args:
        most_bytes: A longer answer is broken off; a command's output and a local file are not.
    """
    match scheme_of(url):
        case "pipe":
            command = url.removeprefix("pipe:")
            with target.open("wb") as file:
                done = subprocess.run(
                    command, shell=True, stdout=file, stderr=subprocess.PIPE, check=False
                )
            if done.returncode:
                words = done.stderr.decode(errors="replace").strip().splitlines()
                said = f": {words[-1]}" if words else ""
                raise OSError(f"the command ended with exit code {done.returncode}{said}")
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
        """Ends a download that does not end, or hardly moves; a drop now and then keeps a socket's
        own clock quiet.
        """

        def __init__(self) -> None:
            super().__init__()
            self.since, self.came, self.total = time.monotonic(), 0, 0

        def relative_update(self, inc: int = 1) -> None:
            self.came += inc
            self.total += inc
            if self.total > most_bytes:
                raise OSError(f"more than {most_bytes:,} bytes came")
            seconds = time.monotonic() - self.since
            if seconds < _STALL_SECONDS:
                return
            if self.came < _STALL_BYTES:
                raise TimeoutError(f"only {self.came:,} bytes came in {seconds:.0f} s")
            self.since, self.came = time.monotonic(), 0

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
        return "there is no such file"
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
        return "log in to that store, as its own tools do (environment variables, profile, token)"
    if isinstance(error, _OtherBytesError):
        return (
            "the shard was changed since it was indexed: fetch the set's index again, "
            "or make one with  ssl-vit shards index"
        )
    return "check the address and the network; the same command goes on where it was"
