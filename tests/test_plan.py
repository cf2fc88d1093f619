"""What follows from a config, against numbers worked out by hand."""

import re
from typing import Any

import pytest

from ssl_vit.cost.network import Cost
from ssl_vit.errors import UserError
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import find_recipe
from ssl_vit.training.config import OptimizerConfig
from ssl_vit.training.plan import (
    DataFacts,
    Machine,
    RunPlan,
    choose_prefetch,
    learning_rate_at,
    make_plan,
    peak_learning_rate,
    split_batch,
    weight_decay_at,
    with_cost,
)

IMAGENET = DataFacts(num_samples=1_281_167, fingerprint="imagenet")


def plan(*words: str, world_size: int = 1, cores: int = 8, data: DataFacts = IMAGENET) -> RunPlan:
    config = apply_overrides(find_recipe("mae_vitb16"), words)
    return make_plan(config, Machine(world_size, cores, "cpu"), data)


def test_imagenet_at_the_papers_batch() -> None:
    made = plan(world_size=8)
    # 64 lanes leave 15 of 1,281,167 images out; 1,281,152 / 4096 is 312.78125 updates an epoch.
    assert made.samples_per_epoch == 1_281_152
    assert made.total_steps == 250_225
    assert made.warmup_steps == 12_511
    assert made.total_epochs == 800.0
    assert made.peak_learning_rate == pytest.approx(2.4e-3)
    assert (made.micro_batch_size, made.accumulation) == (64, 8)
    assert (made.num_samples, made.data_fingerprint) == (1_281_167, "imagenet")


def test_steps_are_taken_as_said() -> None:
    made = plan("schedule.unit=steps", "schedule.length=1000", "schedule.warmup=100")
    assert (made.total_steps, made.warmup_steps) == (1000, 100)
    assert made.total_epochs == pytest.approx(1000 / 312.78125, abs=1e-3)


def test_even_the_shortest_run_makes_a_step() -> None:
    made = plan("schedule.length=0.001", "schedule.warmup=0")
    assert (made.total_steps, made.warmup_steps) == (1, 0)


@pytest.mark.parametrize(
    ("said", "cores", "workers"),
    [("auto", 1, 1), ("auto", 2, 1), ("auto", 6, 5), ("auto", 64, 16), ("0", 8, 0), ("9", 2, 9)],
)
def test_workers_leave_a_core_to_the_model(said: str, cores: int, workers: int) -> None:
    made = plan(f"engine.workers={said}", cores=cores)
    assert (made.workers, made.threads) == (workers, cores)


@pytest.mark.parametrize(
    ("batch", "world_size", "micro", "expected"),
    [
        (4096, 1, 64, (64, 64)),
        (4096, 64, 64, (64, 1)),
        (4096, 8, 512, (512, 1)),
        (4096, 128, 64, (32, 1)),  # a process's whole share is smaller than the micro-batch
        (8, 1, 4, (4, 2)),
        (8, 2, 1, (1, 4)),
    ],
)
def test_a_batch_is_split_over_processes_and_micro_batches(
    batch: int, world_size: int, micro: int, expected: tuple[int, int]
) -> None:
    assert split_batch(batch, world_size, micro, lanes=world_size) == expected
    assert expected[0] * expected[1] * world_size == batch


def works(batch: int, world_size: int, micro: int, lanes: int) -> bool:
    if batch % lanes:
        return False
    share = batch // world_size
    return share <= micro or share % micro == 0


@pytest.mark.parametrize(
    ("batch", "world_size", "micro", "lanes"),
    [
        (100, 1, 64, 1),
        (192, 1, 128, 64),
        (4160, 2, 64, 2),
        (1000, 8, 48, 8),
        (260, 4, 64, 4),
        (4096, 1, 63, 1),
        (96, 1, 64, 48),
    ],
)
def test_a_batch_that_does_not_split_is_answered_with_the_nearest_that_do(
    batch: int, world_size: int, micro: int, lanes: int
) -> None:
    assert not works(batch, world_size, micro, lanes)
    with pytest.raises(UserError) as caught:
        split_batch(batch, world_size, micro, lanes)
    below = next(b for b in range(batch, 0, -1) if works(b, world_size, micro, lanes))
    above = next(b for b in range(batch, 10**6) if works(b, world_size, micro, lanes))
    for number in (batch, world_size, micro):
        assert str(number) in caught.value.problem
    *batches, instead = map(int, re.findall(r"\d+", caught.value.remedy))
    assert batches == [below, above]
    assert works(batch, world_size, instead, lanes)
    assert instead < micro


def test_processes_that_do_not_divide_the_lanes_are_answered_with_those_that_do() -> None:
    with pytest.raises(UserError) as caught:
        plan(world_size=3)
    assert "3 processes do not divide data.lanes=64" in caught.value.problem
    assert "1, 2, 4, 8, 16, 32, 64 processes" in caught.value.remedy


def test_fewer_samples_than_lanes_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        plan(data=DataFacts(50, "few"))
    assert "50 samples are fewer than data.lanes=64" in caught.value.problem
    assert caught.value.remedy == "add  data.lanes=32"


@pytest.mark.parametrize(
    ("rule", "base", "batch", "peak"),
    [
        ("linear_256", 1.5e-4, 4096, 2.4e-3),  # MAE
        ("linear_256", 1e-3, 128, 5e-4),
        ("sqrt_1024", 4e-3, 2048, 5.6569e-3),  # DINOv2, ViT-L/16 short
        ("sqrt_1024", 2e-4, 3072, 3.4641e-4),  # DINOv2, ViT-L/14
        ("absolute", 1.5e-3, 2048, 1.5e-3),  # BEiT
    ],
)
def test_the_peak_learning_rate_follows_the_rule(
    rule: Any, base: float, batch: int, peak: float
) -> None:
    optimizer = OptimizerConfig(base_learning_rate=base, learning_rate_rule=rule)
    assert peak_learning_rate(optimizer, batch) == pytest.approx(peak, rel=1e-4)


def test_learning_rate_and_decay_of_a_step() -> None:
    words = ["schedule.unit=steps", "schedule.length=20", "schedule.warmup=4"]
    made = plan(*words)
    optimizer = OptimizerConfig(final_learning_rate=4e-4, weight_decay=0.04, final_weight_decay=0.4)
    assert learning_rate_at(0, optimizer, made) == pytest.approx(6e-4)
    assert learning_rate_at(3, optimizer, made) == pytest.approx(2.4e-3)
    assert learning_rate_at(12, optimizer, made) == pytest.approx(1.4e-3)
    assert weight_decay_at(0, optimizer, made) == pytest.approx(0.04)
    assert weight_decay_at(10, optimizer, made) == pytest.approx(0.22)
    assert weight_decay_at(20, optimizer, made) == pytest.approx(0.4)


def test_workers_prefetch_and_pinning_follow_from_the_machine() -> None:
    made = plan(cores=4)
    assert (made.workers, made.prefetch, made.pin_memory) == (3, 8, False)
    assert plan(cores=1).workers == 1
    assert plan(cores=64).workers == 16
    said = plan("engine.workers=5", "engine.prefetch=3")
    assert (said.workers, said.prefetch) == (5, 3)
    config = find_recipe("mae_vitb16")
    assert make_plan(config, Machine(8, 8, "cuda"), IMAGENET).pin_memory


@pytest.mark.parametrize(
    ("micro", "accumulation", "workers", "prefetch"),
    [
        (64, 1, 1, 3),  # two updates ahead and one more
        (64, 1, 16, 2),  # sixteen workers are enough with the least
        (64, 32, 4, 8),  # never more than eight
        (512, 8, 2, 4),  # 77 MB a micro-batch: memory is the limit, the two in use counted
        (512, 8, 16, 1),  # and where even one ahead is more, one
        (64, 4, 0, 8),  # loading in the process itself, which prefetches nothing
    ],
)
def test_prefetch_is_two_steps_in_bounded_memory(
    micro: int, accumulation: int, workers: int, prefetch: int
) -> None:
    assert choose_prefetch(micro, accumulation, workers, pixels=224**2) == prefetch


def test_the_plan_says_what_becomes_of_every_set() -> None:
    data = DataFacts(300_000, "mixed", (("A", 100_000), ("B", 200_000)))
    words = ["schedule.unit=steps", "schedule.length=100", "schedule.warmup=1"]
    unweighted = plan(*words, data=data).sets
    # 409,600 images, and every one equally often.
    assert [(s.source, s.num_samples, s.share, s.times_seen) for s in unweighted] == [
        ("A", 100_000, 0.3333, 1.365),
        ("B", 200_000, 0.6667, 1.365),
    ]
    weighted = plan(*words, "data.shards=[A,B]", "data.weights=[3,1]", data=data).sets
    assert [(s.share, s.times_seen) for s in weighted] == [(0.75, 3.072), (0.25, 0.512)]


def test_all_views_count_in_what_is_prefetched() -> None:
    # 7 workers, 2 × 224² + 8 × 96² pixels an image: 234 MB a slot, and two slots are in use.
    machine = Machine(8, 8, "cuda")
    assert make_plan(find_recipe("dinov2_vitl16"), machine, IMAGENET).prefetch == 2
    globals_alone = apply_overrides(find_recipe("dinov2_vitl16"), ["objective.local_crops=0"])
    assert make_plan(globals_alone, machine, IMAGENET).prefetch == 3


def test_koleo_of_a_single_image_is_refused() -> None:
    config = apply_overrides(find_recipe("dinov2_small_data"), ["engine.micro_batch_size=1"])
    with pytest.raises(UserError, match=r"objective\.koleo_weight compares"):
        make_plan(config, Machine(1, 2, "cpu"), IMAGENET)
    without = apply_overrides(config, ["objective.koleo_weight=0"])
    assert make_plan(without, Machine(1, 2, "cpu"), IMAGENET).micro_batch_size == 1


def test_what_is_counted_is_filled_in_after_the_checks() -> None:
    config = find_recipe("mae_vitb16")
    machine = Machine(8, 8, "cuda", memory_bytes=2**30)
    made = make_plan(config, machine, IMAGENET)
    assert (made.trained_parameters, made.step_flops_per_image) == (0, 0.0)
    found = with_cost(made, config, machine, Cost(trained=1000, step_flops=30.0))
    assert (found.trained_parameters, found.step_flops_per_image) == (1000, 30.0)
    counted = {"trained_parameters": 0, "step_flops_per_image": 0.0}
    assert found.model_copy(update=counted) == made


def test_an_automatic_micro_batch_is_the_largest_of_which_the_counted_cost_fits() -> None:
    config = apply_overrides(find_recipe("mae_vitb16"), ["engine.micro_batch_size=auto"])
    machine = Machine(8, 8, "cuda", memory_bytes=1000)
    made = make_plan(config, machine, IMAGENET)
    assert (made.micro_batch_size, made.micro_batch_found_for) == (64, "")
    # 512 images a process; 800 bytes of memory may be taken.
    found = with_cost(made, config, machine, Cost(kept_bytes=6.0))
    assert (found.micro_batch_size, found.accumulation) == (128, 4)
    earlier = (found.micro_batch_found_for, 32)
    again = make_plan(config, machine, IMAGENET, earlier)
    assert with_cost(again, config, machine, Cost(kept_bytes=6.0)).micro_batch_size == 32
    with pytest.raises(UserError, match="not even one image"):
        with_cost(made, config, machine, Cost(kept_bytes=1001.0))


def test_an_automatic_micro_batch_of_one_image_is_refused_where_images_are_compared() -> None:
    config = apply_overrides(find_recipe("dinov2_small_data"), ["engine.micro_batch_size=auto"])
    machine = Machine(1, 2, "cuda", memory_bytes=1000)
    made = make_plan(config, machine, IMAGENET)
    with pytest.raises(UserError, match=r"objective\.koleo_weight compares"):
        with_cost(made, config, machine, Cost(kept_bytes=500.0))
