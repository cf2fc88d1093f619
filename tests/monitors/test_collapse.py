"""When an alarm is raised, and when it must not be."""

import math
from typing import Any

import pytest
import torch

from ssl_vit.monitors.collapse import CollapseWatch
from ssl_vit.monitors.config import MonitorConfig
from ssl_vit.monitors.monitor import Monitor, Ring
from ssl_vit.objectives.config import BeitConfig, DinoConfig, MaeConfig, TokenizerConfig
from ssl_vit.objectives.objective import Observed

PROTOTYPES = 1024
MOST = math.log(PROTOTYPES)


def healthy(teacher_entropy: float = 0.7 * MOST, **changes: float) -> dict[str, float]:
    monitored = {"code_usage": 0.4, "spread": 0.9, "rankme": 40.0, "alpha_req": 1.5} | changes
    named = {f"monitor/{name}": value for name, value in monitored.items()}
    return {"teacher_entropy": teacher_entropy, **named}


def watch(objective: Any = None, warmup_steps: int = 100) -> CollapseWatch:
    return CollapseWatch(objective or DinoConfig(prototypes=PROTOTYPES), warmup_steps)


def symptoms(watching: CollapseWatch, *looks: dict[str, float], first: int = 10) -> list[str]:
    """What is raised in looks ten steps apart."""
    return [
        alarm.symptom
        for place, look in enumerate(looks)
        for alarm in watching.judge(first + 10 * place, look)
    ]


def test_a_healthy_run_is_left_alone():
    assert symptoms(watch(), *[healthy()] * 200) == []


def test_a_network_that_has_not_begun_is_no_alarm():
    # As a random ViT is: all images nearly alike, one code for all, unsure about each.
    begin = healthy(teacher_entropy=0.999 * MOST, code_usage=1 / 512, spread=0.002, rankme=1.2)
    assert symptoms(watch(), *[begin] * 20) == []
    assert symptoms(watch(warmup_steps=5000), *[begin] * 500) == []


def test_one_that_stays_so_is():
    begin = healthy(teacher_entropy=0.999 * MOST, spread=0.002, rankme=1.2)
    assert symptoms(watch(), *[begin] * 30) == ["no answer", "one direction"]


def test_one_answer_for_all_is_an_alarm_at_once():
    same = healthy(teacher_entropy=0.1 * MOST, code_usage=1 / 512)
    watching = watch(warmup_steps=5000)
    assert symptoms(watching, same, same) == []
    (alarm,) = watching.judge(30, same)
    assert (alarm.symptom, alarm.step) == ("one answer", 30)
    assert f"{0.1 * MOST:.2f} of {MOST:.2f}" in alarm.evidence
    assert "objective.momentum" in alarm.remedy
    assert watching.active == ["one answer"]


def test_what_is_sure_of_each_image_is_no_collapse():
    sure = healthy(teacher_entropy=0.01 * MOST, code_usage=0.6)
    assert symptoms(watch(), *[sure] * 100) == []


def test_a_fall_from_what_was_is_an_alarm_before_the_warm_up_is_over():
    falls = [healthy(spread=value) for value in (0.5, 0.8, 0.4, 0.05, 0.03, 0.02)]
    assert symptoms(watch(warmup_steps=5000), *falls) == ["one direction"]


def test_a_restart_remembers_the_height_it_falls_from_and_the_alarms_that_last():
    before = [{"step": 1000 + 10 * place, **healthy(rankme=90.0)} for place in range(3)]
    between: dict[str, Any] = {"step": 1025, "loss": 1.0, "skipped": None, "samples": [1, 2]}
    broken = dict.fromkeys(healthy(), None)
    fallen = healthy(rankme=15.0)
    resumed = watch(MaeConfig())
    resumed.recall([*before, between, {"step": 1030, **broken}])
    assert symptoms(resumed, *[fallen] * 3, first=1040) == ["few dimensions"]
    again = watch(MaeConfig())
    again.recall([*before, *({"step": 1040 + 10 * place, **fallen} for place in range(3))])
    assert again.active == ["few dimensions"]
    assert symptoms(again, *[fallen] * 3, first=1070) == []


def test_losing_dimensions_is_an_alarm():
    fine = [healthy(rankme=value) for value in (20.0, 60.0, 90.0)]
    fallen = [healthy(rankme=15.0)] * 3
    assert symptoms(watch(MaeConfig()), *fine, *fallen, first=1000) == ["few dimensions"]


def test_an_odd_look_is_forgiven_and_an_alarm_comes_once():
    odd = healthy(spread=0.001)
    watching = watch()
    assert symptoms(watching, *[odd, odd, healthy()] * 10, first=1000) == []
    assert symptoms(watching, *[odd] * 20, first=2000) == ["one direction"]
    assert symptoms(watching, healthy(), *[odd] * 3, first=3000) == ["one direction"]


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (MaeConfig(), "optimizer.clip_norm"),
        (DinoConfig(prototypes=PROTOTYPES), "objective.koleo_weight"),
    ],
)
def test_the_cure_is_in_settings_that_the_objective_has(objective: Any, named: str):
    watching = watch(objective)
    looks = [watching.judge(step, {"monitor/spread": 0.0}) for step in (1000, 1010, 1020)]
    assert [len(alarms) for alarms in looks] == [0, 0, 1]
    assert named in looks[-1][0].remedy


def test_a_ring_holds_the_newest():
    ring = Ring(5)
    for first in (0, 3, 6):
        ring.add(torch.arange(first, first + 3).unsqueeze(1))
    assert sorted(ring.rows.flatten().tolist()) == [4, 5, 6, 7, 8]
    ring.add(torch.arange(100, 120).unsqueeze(1))
    assert sorted(ring.rows.flatten().tolist()) == [115, 116, 117, 118, 119]


def test_a_monitor_looks_every_few_steps_at_features_of_many():
    monitor = Monitor(MonitorConfig(every_steps=3, buffer=32), watch())
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(9):
        features = torch.randn(8, 16, generator=generator)
        observed = [Observed(features, torch.arange(8) + 8 * (step % 2), 100)] * 2
        measures, alarms = monitor.look(step, observed, {})
        assert alarms == []
        found.append(set(measures))
    names = {f"monitor/{name}" for name in ("rankme", "alpha_req", "spread", "code_usage")}
    assert found == [set(), set(), names] * 3


def test_features_that_are_not_finite_are_somebody_elses():
    monitor = Monitor(MonitorConfig(every_steps=1), watch())
    assert monitor.look(0, [Observed(torch.full((4, 8), float("nan")))], {}) == ({}, [])


def test_few_rows_are_no_few_dimensions():
    monitor = Monitor(MonitorConfig(every_steps=1, buffer=64), watch(MaeConfig()))
    monitor.watch.recall([{"step": 1000, **healthy(rankme=60.0)}])
    generator = torch.Generator().manual_seed(0)
    for step in range(1001, 1009):  # as after a restart: 4, 8, … rows
        seen = [Observed(torch.randn(4, 128, generator=generator))]
        measures, alarms = monitor.look(step, seen, {})
        assert measures["monitor/rankme"] < 40
        assert alarms == []
        assert monitor.watch.active == []


def of_patches(**measures: float) -> dict[str, float]:
    return {"monitor/spread": 0.9, "monitor/rankme": 40.0, **measures}


def test_a_codebook_that_is_not_used_is_an_alarm_but_not_before_it_has_codes():
    watching = watch(TokenizerConfig(target="pixels", codebook_size=256))
    assert symptoms(watching, *[of_patches()] * 50) == []  # until k-means
    used = of_patches(codes_used=0.9, perplexity=200.0)
    assert symptoms(watching, *[used] * 5, first=510) == []
    few = of_patches(codes_used=0.04, perplexity=3.0)
    (_, _, (alarm,)) = [watching.judge(step, few) for step in (600, 610, 620)]
    assert alarm.symptom == "few codes"
    assert "4.0% of the codes" in alarm.evidence
    assert "perplexity of 3.0 of 256" in alarm.evidence
    assert "objective.codebook_size" in alarm.remedy


def test_codes_that_say_nothing_of_the_target_are_an_alarm():
    watching = watch(TokenizerConfig(target="pixels", codebook_size=256))
    used = {"codes_used": 0.9, "perplexity": 200.0}
    assert symptoms(watching, *[of_patches(explained=0.0)] * 50) == []  # until k-means
    assert symptoms(watching, *[of_patches(**used, explained=0.6)] * 5, first=510) == []
    (_, _, (alarm,)) = [
        watching.judge(step, of_patches(**used, explained=0.03)) for step in (600, 610, 620)
    ]
    assert alarm.symptom == "empty codes"
    assert "3.0% of its variation" in alarm.evidence
    assert "objective.codebook_start" in alarm.remedy


def test_tokens_that_are_all_the_same_are_an_alarm():
    watching = watch(BeitConfig())
    assert symptoms(watching, *[of_patches(unigram_accuracy=0.6)] * 50) == []
    same = of_patches(unigram_accuracy=0.999)
    assert symptoms(watching, *[same] * 5, first=510) == ["few codes"]
