"""Which runs a sweep is."""

import pytest

from ssl_vit.errors import UserError
from ssl_vit_launch.sweep import combinations, name_of, split_values


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1", ["1"]),
        ("0.6,0.75", ["0.6", "0.75"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{x: 1, y: 2},3", ["{x: 1, y: 2}", "3"]),
        ("'a,b',c", ["'a,b'", "c"]),
    ],
)
def test_commas_part_values_and_not_what_is_inside_them(text: str, parts: list[str]):
    assert split_values(text) == parts


def test_every_value_meets_every_other():
    found = combinations(["data.shards=S", "seed=0,1", "objective.mask_ratio=0.5,0.75,0.9"])
    assert len(found) == 6
    assert found[0][0] == ("data.shards=S", "seed=0", "objective.mask_ratio=0.5")
    assert found[-1][1] == ("seed=1", "objective.mask_ratio=0.9")
    assert name_of(found[-1][1]) == "seed=1,mask_ratio=0.9"


def test_a_folders_name_has_no_sign_that_shells_or_paths_take_for_theirs():
    assert name_of(["data.shards=/a b/[c]"]) == "shards=_a_b__c_"


@pytest.mark.parametrize(
    ("words", "said"), [(["seed=1"], "nothing differs"), (["seed"], "not of the form")]
)
def test_what_is_no_sweep_is_refused(words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        combinations(words)
