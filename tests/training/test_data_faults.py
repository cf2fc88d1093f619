"""What whole runs make of their data: remote, damaged, broken, mixed, made up, or another's."""

import json
from pathlib import Path

import pytest

from ssl_vit.data.sources import open_shards
from tests.command_line import ENVIRONMENT, SMOKE, losses, ssl_vit, torchrun
from tests.faulty_server import serving
from tests.synthetic import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), shard_bytes=20_000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ENVIRONMENT, "SSL_VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spoil(shards: Path, numbers: list[int]) -> None:
    """Overwrite images, and mend the index, so that only decoding finds them."""
    from ssl_vit_data_prep.index import IndexOptions, index_shards

    opened = open_shards(shards)
    for number in numbers:
        record = opened.record(number)
        with Path(opened.location_of(number)).open("r+b") as file:
            file.seek(int(record["offset"]) + 40)
            file.write(bytes(int(record["length"]) - 40))
    index_shards([str(shards)], None, IndexOptions(), 1, overwrite=True)


def bad_samples(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]


def test_remote_shards_give_the_losses_of_local_ones(
    shards: Path, unbroken: Path, tmp_path: Path, own_cache: Path
):
    count = len(open_shards(shards).shards)
    with serving(shards, ["500", "cut"]) as server:
        source = f"{server.url}shard-{{000000..{count - 1:06d}}}.tar"
        done = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={source}")
        assert done.returncode == 0, done.stderr
        assert "answered 500" in done.stderr
        requests = {name: n for name, n in server.requests.items() if name.endswith(".tar")}
    assert losses(tmp_path / "run") == losses(unbroken)
    assert sum(requests.values()) == len(requests) + 2  # each once, but for the two faults
    assert len(list((own_cache / "shards").glob("*.tar"))) == len(requests)
    # The same run goes on from the local copy: the data are known by content, not by place.
    again = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={shards}")
    assert again.returncode == 0, again.stderr


def test_two_processes_share_a_cache_that_holds_only_what_is_in_use(
    tmp_path: Path, own_cache: Path
):
    # Room for half of them: more than the shards that both ranks and their workers, which run
    # ahead, have in use, so nobody ever has to go beyond it.
    shards = write_shards(tmp_path, per_class=96, shard_bytes=20_000)
    opened = open_shards(shards).shards
    room = max(shard.num_bytes for shard in opened) * (len(opened) // 2)
    with serving(shards) as server:
        words = (f"data.shards={server.url}", f"engine.cache_bytes={room}")
        # Blocks of one: a lane is in one shard at a time.
        done = torchrun(2, *SMOKE, tmp_path / "run", *words, "data.shuffle_block=1")
        assert done.returncode == 0, done.stderr
    local = ssl_vit(*SMOKE, tmp_path / "local", f"data.shards={shards}", "data.shuffle_block=1")
    assert local.returncode == 0, local.stderr
    for ours, theirs in zip(losses(tmp_path / "run"), losses(tmp_path / "local"), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
    used = sum(path.stat().st_size for path in (own_cache / "shards").glob("*.tar"))
    assert used <= room


def test_a_flipped_byte_is_found_by_training_and_by_check(tmp_path: Path):
    shards = write_shards(tmp_path, shard_bytes=20_000)
    tar = sorted(shards.glob("*.tar"))[1]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    done = ssl_vit(*SMOKE, tmp_path / "run", f"data.shards={shards}")
    assert done.returncode == 2
    wrong, fix = done.stderr.strip().splitlines()[-2:]
    assert wrong.startswith(f"error: shard {tar} is damaged")
    assert "ssl-vit shards check" in fix
    checked = ssl_vit("shards", "check", shards)
    assert checked.returncode == 1
    assert f"{tar.name}: its bytes do not match the index" in checked.stdout


def test_bad_images_are_replaced_listed_and_the_same_on_two_processes(tmp_path: Path):
    shards = write_shards(tmp_path, shard_bytes=20_000)
    spoil(shards, [3])
    words = (f"data.shards={shards}", "data.max_bad_fraction=0.1")
    done = ssl_vit(*SMOKE, tmp_path / "one", *words)
    assert done.returncode == 0, done.stderr
    lines = bad_samples(tmp_path / "one")
    # 48 images, 20 updates of 8: three or four times.
    assert 3 <= len(lines) <= 4
    opened = open_shards(shards)
    for line in lines:
        assert line["key"] == opened.key(3)
        assert line["shard"] == opened.location_of(3)
        assert (line["number"], line["replaced_by"]) == (3, 4)
    assert f"bad samples {len(lines)}" in done.stderr
    done = torchrun(2, *SMOKE, tmp_path / "two", *words)
    assert done.returncode == 0, done.stderr
    assert bad_samples(tmp_path / "two") == lines
    for ours, theirs in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert (ours[0], ours[2]) == (theirs[0], theirs[2])


def test_too_many_bad_images_stop_the_run_which_saves_and_can_go_on(tmp_path: Path):
    shards = write_shards(tmp_path, shard_bytes=20_000)
    spoil(shards, [3, 4, 5, 30, 31])
    run, words = tmp_path / "run", (f"data.shards={shards}", "data.max_bad_fraction=0.005")
    done = ssl_vit(*SMOKE, run, *words)
    assert done.returncode == 2, done.stderr
    wrong, fix = done.stderr.strip().splitlines()[-2:]
    assert "more than data.max_bad_fraction=0.005" in wrong
    assert str(run / "bad_samples.jsonl") in wrong
    assert "larger data.max_bad_fraction" in fix
    made = len(losses(run))
    assert made < 20
    assert len(bad_samples(run)) > 5  # 0.005 of a thousand
    assert (run / "checkpoints" / f"step_{made:08d}").is_dir()
    on = ssl_vit(*SMOKE, run, f"data.shards={shards}", "data.max_bad_fraction=0.2")
    assert on.returncode == 0, on.stderr
    whole = ssl_vit(
        *SMOKE, tmp_path / "whole", f"data.shards={shards}", "data.max_bad_fraction=0.2"
    )
    assert whole.returncode == 0, whole.stderr
    assert losses(run) == losses(tmp_path / "whole")
    assert bad_samples(run) == bad_samples(tmp_path / "whole")


def test_resuming_on_other_data_is_refused_and_says_what_differs(
    shards: Path, unbroken: Path, tmp_path: Path
):
    data = json.loads((unbroken / "environment.json").read_text())["data"]
    assert data["fingerprint"] == open_shards(shards).fingerprint
    before = (unbroken / "metrics.jsonl").read_bytes()
    other = write_shards(tmp_path, per_class=25, shard_bytes=20_000)
    done = ssl_vit(*SMOKE, unbroken, f"data.shards={other}")
    assert done.returncode == 2
    wrong, _ = done.stderr.strip().splitlines()
    assert "48 images" in wrong
    assert "50 images" in wrong
    assert "shard number 0: shard-000000.tar has different content" in wrong
    # Fewer shards of the same set.
    some = f"{shards}/shard-{{000000..000001}}.tar"
    done = ssl_vit(*SMOKE, unbroken, f"data.shards={some}")
    assert done.returncode == 2
    assert "shard number 2: shard-000002.tar → nothing" in done.stderr
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_a_mixture_is_said_in_the_plan_and_resumes(shards: Path, tmp_path: Path):
    other = write_shards(tmp_path, per_class=100, shard_bytes=50_000)
    run, words = tmp_path / "run", (f"data.shards=[{shards},{other}]", "data.weights=[3,1]")
    done = ssl_vit(*SMOKE, run, *words)
    assert done.returncode == 0, done.stderr
    # 160 samples: 120 of the 48 images of the first, 40 of the 200 of the second.
    assert f"{shards}: 48 images, 75.0% of every batch, repeated: each is seen 2.5" in done.stderr
    assert f"{other}: 200 images, 25.0% of every batch, truncated: 20.00% of" in done.stderr
    plan = json.loads((run / "plan.json").read_text())
    assert [(s["num_samples"], s["times_seen"]) for s in plan["sets"]] == [(48, 2.5), (200, 0.2)]
    changed = ssl_vit(*SMOKE, run, words[0], "data.weights=[1,1]")
    assert changed.returncode == 2
    assert "data.weights" in changed.stderr
    two = torchrun(2, *SMOKE, tmp_path / "two", *words)
    assert two.returncode == 0, two.stderr
    assert [line[2] for line in losses(tmp_path / "two")] == [line[2] for line in losses(run)]


def test_made_up_samples_need_no_shards(tmp_path: Path):
    done = ssl_vit(*SMOKE, tmp_path / "run", "data.source=synthetic")
    assert done.returncode == 0, done.stderr
    assert "1,281,167 images" in done.stderr
    waits = [
        json.loads(line)["data_wait"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(waits)[len(waits) // 2] < 0.05
