"""Cluster profiles: the shipped ones, and errors in a user's own."""

from pathlib import Path

import pytest

from ssl_vit.errors import UserError
from ssl_vit_launch.cluster import ClusterConfig, read_cluster
from tests.launch.test_batch import PROFILES


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_a_shipped_profile_is_valid_and_states_its_purpose(file: Path):
    read_cluster(str(file))
    assert file.read_text().startswith("# ")


def test_the_example_names_every_setting():
    text = (PROFILES[0].parent / "example.yaml").read_text()
    documented = {line.lstrip("# ").partition(":")[0] for line in text.splitlines()}
    elsewhere = {"scheduler", "container"}  # in profiles of their own
    assert set(ClusterConfig.model_fields) - elsewhere <= documented


def test_variables_of_bash_are_kept(tmp_path: Path):
    profile = tmp_path / "my.yaml"
    profile.write_text("setup: ['export A=${B:-c}']\nlocal_cache: ${TMPDIR}/x\n")
    cluster = read_cluster(str(profile))
    assert "export A=${B:-c}" in cluster.setup_lines()
    assert cluster.local_cache == "${TMPDIR}/x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton: gpu", "partition"),
        ("processes_per_node: 0", "processes_per_node"),
        ("environment: {'A B': c}", "environment.A B is not a variable name"),
        ("- partition", "is not a YAML mapping"),
        ("a: [", "not readable as YAML"),
        ("container: {runtime: docker}", "apptainer"),
        ("timeout_minutes: 1", "warn_seconds=120 is not less than timeout_minutes=1"),
        ("{processes_per_node: 8, gpus_per_node: 4}", "processes_per_node=8 is more than"),
        ("sbatch: {time: 5}", "sbatch.time is set by the launcher"),
        ("{scheduler: local, partition: gpu}", "partition has no effect with scheduler: local"),
    ],
)
def test_an_error_is_named(tmp_path: Path, text: str, said: str):
    profile = tmp_path / "my.yaml"
    profile.write_text(text)
    with pytest.raises(UserError, match=said):
        read_cluster(str(profile))


def test_the_interface_is_set_for_both_libraries():
    cluster = ClusterConfig(network_interface="ib0", environment={"NCCL_SOCKET_IFNAME": "ib1"})
    assert cluster.exports() == {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib1"}
