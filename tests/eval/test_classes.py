"""Matching the classes of two sets: what must be one class, what must not, and what is said."""

import numpy as np
import pytest

from ssl_vit.data.class_names import plain_name
from ssl_vit.data.sources import open_shards
from ssl_vit.errors import UserError
from ssl_vit_eval.classes import MatchedClasses, match_classes

ABC = ("a", "b", "c")
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def match(make_shards):
    """Matches sets given as (classes, labels)."""

    def call(train, test, known_only: bool = False) -> MatchedClasses:
        sets = [
            open_shards(make_shards(name, labels, seed, classes))
            for name, (classes, labels), seed in (("train", train, 1), ("test", test, 2))
        ]
        return match_classes(*sets, known_only)

    return call


def names_of(matched: MatchedClasses, side: str) -> list[str]:
    return [matched.names[label] for label in getattr(matched, side).labels]


@pytest.mark.parametrize(
    ("train", "test", "train_names", "test_names"),
    [
        # Alike.
        ((ABC, [0, 1, 2]), (ABC, [2, 0, 1]), "a b c", "c a b"),
        # In another order.
        ((ABC, [0, 1, 2]), (("c", "a", "b"), [0, 1, 2]), "a b c", "c a b"),
        # The test set lacks a class.
        ((ABC, [0, 1, 2]), (("a", "c"), [1, 1, 0]), "a b c", "c c a"),
        # Classes without images, in either set or in both, and before, between or behind others.
        ((("x", "a", "y", "b"), [1, 3, -1]), (("b", "z", "a"), [2, 0]), "a b", "a b"),
        ((("x", "a", "b"), [1, 2]), (("x", "a", "b"), [2, 1]), "a b", "b a"),
        # Blanks and Unicode forms.
        ((("a b", COMPOSED), [0, 1]), ((" a  b ", DECOMPOSED), [1, 0]), f"a b|{COMPOSED}", None),
        ((("a", "b"), [0, 1]), (("\ufeffa", "b\u00a0"), [0, 1]), "a b", "a b"),
        # Within one set.
        ((("a", "a ", "b"), [0, 1, 2]), (("a", "b"), [0, 1]), "a a b", "a b"),
        # Case is a difference where both are there.
        ((("A", "a"), [0, 1]), (("a", "A"), [0, 1]), "A a", "a A"),
        # Namesakes that both sets number alike (ImageNet has two cranes).
        ((("crane", "crane"), [0, 1]), (("crane", "crane"), [1, 0]), "crane crane", None),
    ],
)
def test_images_keep_the_class_of_their_name(match, train, test, train_names, test_names):
    matched = match(train, test)
    separator = "|" if "|" in train_names else " "
    assert names_of(matched, "train") == train_names.split(separator)
    if test_names:
        assert names_of(matched, "test") == test_names.split(" ")
    expected = [plain_name(test[0][label]) for label in test[1] if label >= 0]
    assert [plain_name(name) for name in names_of(matched, "test")] == expected


def test_namesakes_stay_apart_where_both_sets_number_them_alike(match):
    both = ("crane", "egret", "crane")
    matched = match((both, [0, 1, 2]), (both, [2, 0, 1]))
    assert matched.test.labels.tolist() == [2, 0, 1]
    assert "Several classes are named crane" in matched.notes[0]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            (ABC, [0, 1, 2]),
            (("a", "d"), [0, 1, 1]),
            r"2 of 3 .*only in train: b, c; .*test: d \(2\)",
        ),
        # Train knows the name and has no image of it.
        ((ABC, [0, 1, -1]), (ABC, [0, 1, 2]), r"1 of 3 .*only in test: c \(1\)"),
        (((("a", "b")), [0, 1]), (("A", "B"), [0, 1]), "no class in common: only in train: a, b"),
        ((("0", "1"), [0, 1]), (("cat", "dog"), [0, 1]), r"no class in common.*cat \(1\), dog"),
        ((("a", "a", "b"), [0, 1, 2]), (("b", "a"), [0, 1]), "several classes .* are named a"),
    ],
)
def test_images_that_no_answer_could_be_right_for_are_refused_by_name(match, train, test, message):
    with pytest.raises(UserError, match=message):
        match(train, test)


def test_images_of_unknown_classes_are_left_out_if_asked_and_said(match):
    matched = match((ABC, [0, 1, 2]), (("d", "c", "b"), [0, 1, -1, 2, 0]), known_only=True)
    assert matched.test.numbers.tolist() == [1, 3]
    assert names_of(matched, "test") == ["c", "b"]
    assert "2 test images of classes without train images are left out: d (2)." in (matched.notes)


def test_what_was_matched_and_what_is_missing_is_said(match):
    said = " ".join(match((("x ", "b", "c"), [0, 1, 2]), (("x", "b"), [0, 1])).notes)
    assert "differ only in blanks or Unicode form are one: 'x ' = 'x'" in said
    assert "No test images of 1 of train's 3 classes: c" in said


def test_another_order_needs_no_note(match):
    assert not match((ABC, [0, 1, 2]), (("b", "c", "a"), [0, 1, 2])).notes


def test_a_thousand_classes_are_matched_like_three(match):
    names = [f"n{number:04d}" for number in range(1000)]
    order = np.random.default_rng(0).permutation(1000)
    shuffled = tuple(names[number] for number in order)
    matched = match((tuple(names), list(range(1000))), (shuffled, [3, 999, 0]))
    assert names_of(matched, "test") == [shuffled[3], shuffled[999], shuffled[0]]
