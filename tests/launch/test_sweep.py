"""The runs of a sweep."""

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
def test_commas_separate_values_but_not_their_parts(text: str, parts: list[str]):
    assert split_values(text) == parts


def test_every_value_is_combined_with_every_other():
    found = combinations(["data.shards=S", "seed=0,1", "objective.mask_ratio=0.5,0.75,0.9"])
    assert len(found) == 6
    assert found[0][0] == ("data.shards=S", "seed=0", "objective.mask_ratio=0.5")
    assert found[-1][1] == ("seed=1", "objective.mask_ratio=0.9")
    assert name_of(found[-1][1]) == "seed=1,mask_ratio=0.9"


def test_a_folder_name_has_no_special_characters():
    assert name_of(["data.shards=/a b/[c]"]) == "shards=_a_b__c_"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["seed=1"], "no setting of this sweep varies"), (["seed"], "not of the form")],
)
def test_an_invalid_sweep_is_refused(words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        combinations(words)
