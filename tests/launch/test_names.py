"""Names that would break a batch script or confuse a scheduler."""

import os
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.config import validate
from ssl_vit.errors import UserError
from ssl_vit_launch.checks import pickle_note
from ssl_vit_launch.cluster import ClusterConfig
from ssl_vit_launch.submit import Request, dry_run


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"partition": "gpu\nrm -rf x"}, "partition contains the control character"),
        ({"account": "%j"}, "contains a %"),
        ({"sbatch": {"comment": "a\nb"}}, "sbatch.comment contains"),
        ({"sbatch": {"a\nb": "c"}}, "is not a long sbatch option"),
        ({"srun": ("--x\n",)}, "srun contains"),
        ({"modules": ("a\x00",)}, "modules contains"),
        ({"container": {"image": "a\nb"}}, "container contains"),
        ({"setup": ("a\0b",)}, "NUL"),
    ],
)
def test_control_characters_in_a_profile(values: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        validate(ClusterConfig, values, "profile.yaml")


def test_setup_and_environment_may_contain_line_breaks():
    validate(ClusterConfig, {"setup": ("a\nb",), "environment": {"A": "b\nc%"}}, "profile.yaml")


@pytest.mark.parametrize(
    ("name", "said"), [("a%j", "contains a %"), ("a\nb", "control character"), ("a\udce9", "UTF-8")]
)
def test_the_path_of_a_run(name: str, said: str, tmp_path: Path):
    run = tmp_path / name
    words = ("data.source=synthetic",)
    request = Request("mae_vits16", run, words, True, ClusterConfig(), nodes=1, min_nodes=1)
    with pytest.raises(UserError, match=said):
        dry_run([request], run)


def test_other_users_who_can_change_the_pickle_are_named(tmp_path: Path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    os.chmod(tmp_path, 0o755)
    os.chmod(jobs, 0o755)
    assert pickle_note(tmp_path) == ""
    os.chmod(jobs, 0o777)
    assert f"{jobs} is writable by everyone" in pickle_note(tmp_path)
    os.chmod(jobs, 0o755)
    os.chmod(tmp_path, 0o707)
    assert "is writable by everyone" in pickle_note(tmp_path)
