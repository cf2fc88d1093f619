"""What disks, terminals and variables do to a command: two lines and exit code 2."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit.data.urls import MOST_SHARDS, expand
from ssl_vit.distributed import read_processes
from ssl_vit.errors import UserError, disk_error
from ssl_vit.files import location_of_bytes, path_of, replacing
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import read_config
from ssl_vit.run.folder import RunFolder
from tests.command_line import ENVIRONMENT


def test_standard_output_on_a_full_disk():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ssl_vit", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2] == "error: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["plan", "--help"], ["recipes", "mae_vits16"]])
def test_a_reader_that_has_enough(words: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ssl_vit", *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode in (1, 141)  # rich says 1
    assert not done.stderr


def test_a_terminal_without_utf8():
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vit", "plan", "mae_vits16"],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0
    assert "mae_vits16 on 1 \\xd7" in done.stdout


def test_an_error_of_the_disk_names_the_file_that_was_to_be_replaced(tmp_path: Path):
    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    mistake = disk_error(caught.value)
    assert mistake is not None
    assert mistake.problem == f"{tmp_path / 'x.json'}: No space left on device"
    assert mistake.may_pass
    assert disk_error(ConnectionResetError()) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE=x in the environment is not a whole number"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0"),
        ("RANK", "-1", "RANK=-1"),
        ("RANK", "5", "RANK=5 of WORLD_SIZE=1"),
        ("LOCAL_WORLD_SIZE", "9" * 5000, "LOCAL_WORLD_SIZE=9"),
    ],
)
def test_variables_that_are_no_numbers(
    name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=said):
        read_processes()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "tab\t"])
def test_control_characters_in_the_path_of_a_run(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="control character"):
        RunFolder(tmp_path / name).check_ours()


@pytest.mark.parametrize(
    "source",
    [
        "x{0..99999999999}.tar",
        "x{0..999999}{0..999999}.tar",
        "x{a,b}{0..1048575}.tar",
        "{" * 2000 + "a,b" + "}" * 2000,
        f"x{{0..{'9' * 5000}}}.tar",
    ],
)
def test_braces_that_stand_for_too_much(source: str):
    with pytest.raises(UserError, match=r"(expand to more than|do not match)"):
        expand(source)
    assert len(expand(f"x{{1..{MOST_SHARDS}}}.tar")) == MOST_SHARDS


def test_a_path_that_is_not_utf8_survives_the_config(tmp_path: Path):
    path = f"{tmp_path}/caf\udce9 100%/a,b"
    location = location_of_bytes(path)
    location.encode()
    assert str(path_of(location)) == path
    assert location_of_bytes("[a,b]") == "[a,b]"
    config = read_config("mae_vits16", [f"data.shards={path}"], False)
    assert [str(path_of(each)) for each in config.data.sources] == [path]
    both = apply_overrides(config, [f"data.shards=[x,{tmp_path}/caf\udce9]"])
    assert [str(path_of(each)) for each in both.data.sources] == ["x", f"{tmp_path}/caf\udce9"]
