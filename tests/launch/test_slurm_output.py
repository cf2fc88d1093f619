"""SLURM's notations; tests/slurm checks the output of real commands."""

import pytest

from ssl_vit_launch.job import usable_nodes
from ssl_vit_launch.slurm import count_gpus, parse_minutes


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:8", 8),
        ("gpu:a100:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:nvidia_a100_3g.20gb:2,gpu:v100:1", 3),
        ("nvme:1,gpu:h100:8(S:0-1),shard:16", 8),
        ("(null)", 0),
        ("craynetwork:4", 0),
    ],
)
def test_gpus_are_counted(gres: str, gpus: int):
    assert count_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("00:05:00", 5), ("12:00:00", 720), ("7-00:00:00", 10080), ("UNLIMITED", 0)],
)
def test_times_are_read(text: str, minutes: int):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("nodes", "per_node", "lanes", "used"),
    [(4, 8, 64, 4), (3, 8, 64, 2), (1, 8, 64, 1), (5, 1, 64, 4), (3, 7, 64, 3)],
)
def test_only_nodes_whose_processes_divide_the_lanes_are_used(
    nodes: int, per_node: int, lanes: int, used: int
):
    assert usable_nodes(nodes, per_node, lanes) == used
