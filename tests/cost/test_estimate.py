"""`ssl-vit plan`: its figures against numbers worked out by hand, its table, its answers to
mistakes.
"""

import re
from pathlib import Path

import pytest

from ssl_vit.cost.devices import DEVICES, recognize
from ssl_vit.cost.disk import expected_disk
from ssl_vit.cost.estimate import Estimate, make_estimate
from ssl_vit.cost.feeding import assumed_feeding, measure_feeding
from ssl_vit.cost.plan_report import advise, describe, memory_rows, traffic_rows
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit.overrides import apply_overrides
from ssl_vit.recipes import find_recipe
from tests.command_line import python, ssl_vit
from tests.synthetic import write_shards


def estimate(
    recipe: str, *words: str, gpus: int = 64, device: str = "h100", images: int = 0
) -> Estimate:
    config = apply_overrides(find_recipe(recipe), words)
    return make_estimate(config, gpus, device, 0.4, images)


def test_the_command_prints_parameters_compute_hours_and_a_row_for_every_stage():
    done = ssl_vit("plan", "mae_vitl16", "--gpus", "64")
    assert done.returncode == 0, done.stderr
    for word in ("329,239,296 trained", "GFLOP per image", "64 GPUs × 1 × 64", "250,225 steps"):
        assert word in done.stdout
    rows = re.findall(r"^\s*([0-3])( \*)?\s+[\d.]+\s", done.stdout, flags=re.MULTILINE)
    assert rows == 2 * [("0", ""), ("1", " *"), ("2", ""), ("3", "")]  # memory, communication


def test_hours_are_operations_over_the_peaks_share():
    found = estimate("mae_vitl16")
    images = 250_225 * 4096
    seconds = images * found.plan.step_flops_per_image / (64 * 989.4e12 * 0.4)
    alone = estimate("mae_vitl16", gpus=1)
    assert alone.hours == pytest.approx(64 * seconds / 3600)
    again = estimate("mae_vitl16", "engine.activation_checkpointing=true", gpus=1)
    assert again.hours == pytest.approx(alone.hours * 4 / 3)
    # Over 80 % of 50 GB/s travel 63/64 of the weights in float32 after every step, and twice that
    # of gradients, which two thirds of a step's 20 ms do not hide.
    once = 63 / 64 * 4 * 329_239_296 / 40e9
    waiting = 250_225 * (once + 2 * once) - 2 / 3 * seconds
    assert found.hours == pytest.approx((seconds + waiting) / 3600)
    # By hand: 24 blocks of 1024 over 50 tokens, 7 of 512 over 197, and one whose result is 147 of
    # them, both ends; forward and backward.
    encoder = 24 * (24 * 50 * 1024**2 + 4 * 50**2 * 1024)
    decoder = 7 * (24 * 197 * 512**2 + 4 * 197**2 * 512)
    last = 6 * 197 * 512**2 + 18 * 147 * 512**2 + 4 * 147 * 197 * 512
    ends = 2 * (49 * 768 * 1024 + 50 * 1024 * 512 + 147 * 512 * 768)
    assert found.plan.step_flops_per_image == 3 * (encoder + decoder + last + ends)


def test_what_does_not_fit_is_said_with_what_helps():
    words = ("engine.micro_batch_size=512", "data.global_batch_size=4096")
    found = estimate("mae_vith14", *words, gpus=8, device="v100")
    first, *_ = advise(found)
    assert first.startswith("Does not fit")
    assert f"engine.micro_batch_size={found.largest_micro_batch}" in first
    assert {row[-1] for row in memory_rows(found)} == {"no"}
    assert 0 < found.largest_micro_batch < 512
    smaller = estimate(
        "mae_vith14",
        *words[1:],
        f"engine.micro_batch_size={found.largest_micro_batch}",
        gpus=8,
        device="v100",
    )
    assert smaller.memory[1].total <= smaller.usable_bytes
    assert not advise(smaller)[0].startswith("Does not fit")


def test_every_remedy_that_is_named_fits():
    words = ("engine.micro_batch_size=128", "data.global_batch_size=4096")
    found = estimate("mae_vith14", *words, gpus=8, device="v100")
    assert len(found.remedies) > 1
    for remedy in found.remedies:
        cured = estimate("mae_vith14", *words, *remedy.split(), gpus=8, device="v100")
        assert not advise(cured)[0].startswith("Does not fit"), remedy


def test_where_nothing_fits_no_remedy_is_made_up():
    words = ("backbone.depth=64",)
    found = estimate("mae_vith14", *words, gpus=1, device="t4")
    assert (found.largest_micro_batch, found.remedies) == (0, ())
    assert "more GPUs" in advise(found)[0]
    assert "none fits" in advise(found)[1]
    with pytest.raises(UserError, match="not even one image"):
        estimate("mae_vith14", *words, "engine.micro_batch_size=auto", gpus=1, device="t4")


def test_a_stage_that_the_settings_exclude_is_no_row_of_numbers():
    found = estimate("mae_vitl16", "engine.offload_optimizer=true")
    assert found.memory[0] is None
    assert memory_rows(found)[0][1:] == ("", "", "", "", "", "", "n/a")
    assert any(line.startswith("host memory") for line in describe(found))


def test_auto_takes_the_largest_that_fits_and_v100s_compute_in_float16():
    found = estimate("mae_vith14", "engine.micro_batch_size=auto", gpus=8, device="v100")
    assert found.plan.micro_batch_size == found.largest_micro_batch
    assert found.plan.precision == "float16"
    assert "float16" in describe(found)[0]
    # The next divisor of a GPU's 512 images is too much.
    double = estimate(
        "mae_vith14",
        f"engine.micro_batch_size={2 * found.largest_micro_batch}",
        gpus=8,
        device="v100",
    )
    assert double.memory[1].total > double.usable_bytes


def test_shards_give_their_own_numbers(tmp_path: Path):
    shards = write_shards(tmp_path, per_class=16)
    found = estimate("mae_small_data", f"data.shards={shards}", "data.lanes=8", gpus=2)
    assert found.plan.num_samples == 32  # two classes
    lines = "\n".join(describe(found))
    assert re.search(r"images/s each \(measured on \d+ of your images, on this machine\)", lines)
    assert f"{found.num_shards}: {found.num_shards / 2:.1f} per GPU" in lines
    assert "ImageNet" not in lines
    assert estimate("mae_small_data", images=5000, gpus=2).plan.num_samples == 5000


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (("--device", "tpu"), "no device named 'tpu'", "devices: t4, v100"),
        (("--gpus", "7"), "7 processes do not divide data.lanes=64", "1, 2, 4, 8"),
        (("--images", "5", "data.shards=/nowhere"), "both data.shards and --images", "--images"),
        (("--device", "v100", "engine.precision=bfloat16"), "does not support bfloat16", "auto"),
        (("--mfu", "40"), "--mfu 40 is not a fraction of the peak", "0.4"),
        (("engine.compile=true", "engine.zero_stage=3"), "engine.compile=true", "zero_stage=2"),
        (("engine.offload_optimizer=true", "engine.zero_stage=0"), "engine.zero_stage=1", ""),
    ],
)
def test_a_mistake_is_answered_in_two_lines(words: tuple[str, ...], problem: str, fix: str):
    done = ssl_vit("plan", "mae_vitl16", *words)
    assert done.returncode == 2
    error, remedy = done.stderr.strip().splitlines()[-2:]
    assert problem in error + remedy
    assert fix in error + remedy
    assert "Traceback" not in done.stderr


def test_what_is_checked_before_counting_imports_no_torch(tmp_path: Path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ssl_vit.cost.estimate import make_estimate\n"
        "from ssl_vit.errors import UserError\n"
        "from ssl_vit.recipes import find_recipe\n"
        "from ssl_vit.run.pretrain import prepare\n"
        "words = ['data.source=synthetic', 'engine.device=cpu']\n"
        f"made = prepare('mae_vits16', Path({str(tmp_path / 'run')!r}), words, True)\n"
        "assert made.plan.total_steps == 20\n"
        "try:\n"
        "    make_estimate(find_recipe('dinov2_vitg14'), 7, 'h100', 0.4, 0)\n"
        "except UserError as error:\n"
        "    print(error.problem, 'torch' in sys.modules)\n"
    )
    done = python("-c", script, cwd=tmp_path)
    assert done.stdout.strip() == "7 processes do not divide data.lanes=64 False", done.stderr


def test_where_torch_is_not_installed_the_disk_is_not_estimated(monkeypatch: pytest.MonkeyPatch):
    config = find_recipe("mae_vitl16")
    disk = expected_disk(config, 10_000)
    assert disk is not None
    # Weights and two moments of 329 million parameters, in float32.
    assert disk.checkpoint == 12 * 329_239_296
    monkeypatch.setattr("ssl_vit.cost.disk.find_spec", lambda _: None)
    assert expected_disk(config, 10_000) is None


def test_an_unknown_recipe_is_answered_like_everywhere():
    with pytest.raises(UserError, match="no recipe named"):
        find_recipe("mae_vitx")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_driver_s_name_is_recognized(name: str, key: str):
    assert recognize(name) is DEVICES[key]


@pytest.mark.parametrize(
    "name",
    [
        "Some GPU 9000",
        "NVIDIA RTX A1000",
        "NVIDIA T400 4GB",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
    ],
)
def test_a_card_that_is_not_in_the_table_is_not_guessed(name: str):
    assert recognize(name) is None


def test_what_a_gpu_sends_and_how_long_it_waits_is_that_of_a_calculation_by_hand():
    found = estimate("mae_vitl16", gpus=8, device="h200")
    weights = 7 / 8 * 4 * 329_239_296  # sent to gather them once, or to reduce their gradients
    compute = found.images_per_gpu * found.plan.step_flops_per_image / (989.4e12 * 0.4)
    assert (found.plan.accumulation, found.plan.micro_batch_size) == (8, 64)
    sent = [each for each in found.traffic.values() if each]
    assert [each.hidden / weights for each in sent] == pytest.approx([0, 2, 8 * 2, 8 * 3])
    assert [each.exposed / weights for each in sent] == pytest.approx([2, 1, 1, 0])
    rate = 0.8 * 450e9  # within a machine
    waits = [
        2 * weights / rate,
        weights / rate + max(0, 2 * weights / rate - 2 / 3 * compute / 8),
        weights / rate + max(0, 16 * weights / rate - 2 / 3 * compute),
        max(0, 24 * weights / rate - compute),
    ]
    assert [found.waiting_seconds(stage) for stage in found.traffic] == pytest.approx(waits)
    assert traffic_rows(found)[1] == (
        "1 *",
        f"{2 * weights / 1e9:.2f}",
        f"{weights / 1e9:.2f}",
        f"{1e3 * waits[1]:.1f}",
        f"{4096 / (compute + waits[1]):,.0f}",
    )


def test_a_slow_network_is_waited_for_and_one_gpu_waits_for_nobody():
    slow = ssl_vit("plan", "mae_vitl16", "--gpus", "64", "--network", "1.25")
    assert "80% of 1.25 GB/s to other machines (--network; 8 GPUs each)" in slow.stdout
    _, table = slow.stdout.split("ms waiting")
    waits = re.findall(r"^ *[0-3](?: \*)? +[\d.]+ +[\d.]+ +([\d.,]+) ", table, re.MULTILINE)
    assert len(waits) == 4
    assert min(float(wait.replace(",", "")) for wait in waits) > 1e3
    assert re.search(r"GPUs wait 9\d% of the time\. Less with engine\.zero_stage=0", slow.stdout)
    alone = ssl_vit("plan", "mae_vitl16")
    assert "Communication" not in alone.stdout
    assert "wait" not in alone.stdout
    assert ssl_vit("plan", "mae_vitl16", "--network", "0").returncode == 2


def test_the_cores_that_feed_a_machine_are_those_of_a_calculation_by_hand():
    found = estimate("mae_vitl16", gpus=64)
    each = 1 / (460e-6 + 4e-9 * 224 * 224)
    assert found.feeding.images_per_second == pytest.approx(each)
    assert found.cores == pytest.approx(found.images_per_second / 8 / each)
    (line,) = (line for line in describe(found) if line.startswith("cores"))
    assert f"about {found.cores:,.1f} of each machine's prepare images at that rate" in line
    assert "set data.shards=SHARDS" in line


def test_images_that_cannot_be_prepared_are_not_measured(tmp_path: Path):
    config = apply_overrides(find_recipe("mae_small_data"), ("data.pixel_mean=[0,0,0]",))
    shards = open_shards(str(write_shards(tmp_path, per_class=16)))
    for tar in tmp_path.rglob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    assert measure_feeding(config, shards) == assumed_feeding(config)
