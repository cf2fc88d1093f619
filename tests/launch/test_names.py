"""Names that a batch script or a scheduler would not take as they are."""

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
        ({"account": "%j"}, "holds a %"),
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


def test_lines_of_bash_may_have_several_lines():
    validate(ClusterConfig, {"setup": ("a\nb",), "environment": {"A": "b\nc%"}}, "profile.yaml")


@pytest.mark.parametrize(
    ("name", "said"), [("a%j", "holds a %"), ("a\nb", "control character"), ("a\udce9", "UTF-8")]
)
def test_the_path_of_a_run(name: str, said: str, tmp_path: Path):
    run = tmp_path / name
    words = ("data.source=synthetic",)
    request = Request("mae_vits16", run, words, True, ClusterConfig(), nodes=1, min_nodes=1)
    with pytest.raises(UserError, match=said):
        dry_run([request], run)


def test_others_who_can_write_where_the_pickle_is_are_named(tmp_path: Path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    os.chmod(tmp_path, 0o755)
    os.chmod(jobs, 0o755)
    assert pickle_note(tmp_path) == ""
    os.chmod(jobs, 0o777)
    assert f"{jobs} can be written by everybody" in pickle_note(tmp_path)
    os.chmod(jobs, 0o755)
    os.chmod(tmp_path, 0o707)
    assert "can be written by everybody" in pickle_note(tmp_path)
