"""Fetching from a real server on loopback that fails on purpose, and from a real S3 server."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_vit.data import fetch
from ssl_vit.data.cache import ShardCache
from ssl_vit.data.fetch import fetch_bytes, fetch_shard
from ssl_vit.data.index_file import Shard
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from tests.faulty_server import Fault, serving
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.01)


def remote_shard(shards: Path, url: str, number: int = 0) -> Shard:
    local = open_shards(shards).shards[number]
    return Shard(
        f"{url}{local.name}",
        local.num_samples,
        local.num_bytes,
        local.sha256,
        local.records_sha256,
    )


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["refuse"], []),  # aiohttp asks once more by itself
        (["500", "500"], ["answered 500", "answered 500"]),
        (["cut"], ["payload"]),
        (["long"], ["20,480 of 40,960 bytes", "invalid HTTP response"]),
        (["other bytes"], ["sha256 differs"]),
        (["500", "cut", "other bytes", "refuse"], ["500", "payload", "sha256"]),
    ],
)
def test_a_server_that_fails_for_a_while_is_asked_again(
    faults: list[Fault], said: list[str], shards: Path, tmp_path: Path
):
    reports: list[str] = []
    with serving(shards, faults) as server:
        shard = remote_shard(shards, server.url)
        fetch_shard(shard, tmp_path / "shard", report=reports.append)
        assert server.requests[shard.name] >= len(faults) + 1
    assert (tmp_path / "shard").read_bytes() == (shards / shard.name).read_bytes()
    assert len(reports) == len(said)
    for report, words in zip(reports, said, strict=True):
        assert report.startswith(f"{shard.url}: ")
        assert words in report


@pytest.mark.parametrize("fault", ["drip", "hang"])
def test_a_connection_that_hardly_moves_is_given_up(
    fault: Fault, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "_STALL_SECONDS", 1.0)
    with serving(shards, [fault]) as server:
        shard = remote_shard(shards, server.url)
        reports: list[str] = []
        fetch_shard(shard, tmp_path / "shard", report=reports.append)
    assert len(reports) == 1
    assert (tmp_path / "shard").read_bytes() == (shards / shard.name).read_bytes()


def test_a_server_that_is_not_there_is_given_up_in_the_end(shards: Path, tmp_path: Path):
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        shard = remote_shard(shards, f"http://127.0.0.1:{closed.getsockname()[1]}/")
        reports: list[str] = []
        with pytest.raises(UserError, match="after 3 tries") as caught:
            fetch_shard(shard, tmp_path / "shard", attempts=3, report=reports.append)
    assert shard.url in caught.value.problem
    assert "network" in caught.value.remedy
    assert len(reports) == 2


@pytest.mark.parametrize(("fault", "remedy"), [("403", "log in"), (None, "address")])
def test_what_another_try_cannot_cure_is_said_at_once(
    fault: Fault | None, remedy: str, shards: Path, tmp_path: Path
):
    reports: list[str] = []
    with serving(shards, [fault] if fault else []) as server:
        url = server.url if fault else f"{server.url}nowhere/"
        shard = remote_shard(shards, url)
        with pytest.raises(UserError, match="cannot fetch") as caught:
            fetch_shard(shard, tmp_path / "shard", report=reports.append)
        assert server.requests.total() == 1
    assert remedy in caught.value.remedy
    assert shard.url in caught.value.problem
    assert reports == []


def test_other_bytes_than_the_indexed_are_an_error_naming_the_shard(shards: Path, tmp_path: Path):
    with serving(shards, ["other bytes"] * 3) as server:
        shard = remote_shard(shards, server.url)
        with pytest.raises(UserError, match="sha256 differs") as caught:
            fetch_shard(shard, tmp_path / "shard", attempts=3, report=lambda line: None)
    assert shard.url in caught.value.problem
    assert "shards index" in caught.value.remedy


def test_a_missing_index_is_told_from_a_server_that_fails(shards: Path):
    with serving(shards) as server:
        assert fetch_bytes(f"{server.url}index.json") == (shards / "index.json").read_bytes()
        with pytest.raises(FileNotFoundError):
            fetch_bytes(f"{server.url}nowhere.json")


def test_a_command_that_fails_is_said_with_its_words(tmp_path: Path):
    shard = Shard("pipe:echo oh dear >&2; exit 3", 1, 1, "", "")
    with pytest.raises(UserError, match="exit code 3: oh dear"):
        fetch_shard(shard, tmp_path / "shard", attempts=1)


def test_a_scheme_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else plain(name)
    )
    with pytest.raises(UserError, match="needs the package gcsfs") as caught:
        fetch_bytes("gs://bucket/index.json")
    assert 'pip install "ssl-vit[gs]"' in caught.value.remedy


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which a real S3 server is reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log
    )
    deadline = time.monotonic() + 300
    while True:
        assert server.poll() is None
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.terminate()
    server.wait()
    log.close()


def test_shards_are_read_from_s3(
    s3: dict[str, str], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import boto3

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="images")
    for path in shards.iterdir():
        client.upload_file(str(path), "images", f"train/{path.name}")
    local = open_shards(shards)
    remote = open_shards("s3://images/train/", ShardCache(tmp_path / "cache"))
    assert remote.fingerprint == local.fingerprint
    # From a forked process too, as data workers are.
    child = os.fork()
    if child == 0:
        same = [remote.read(number) == local.read(number) for number in range(20)]
        os._exit(0 if all(same) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for number in range(local.num_samples):
        assert remote.read(number) == local.read(number)
        assert remote.key(number) == local.key(number)
    with pytest.raises(UserError, match="no index"):
        open_shards("s3://images/nowhere/", ShardCache(tmp_path / "cache"))
