"""Dynamic loss scaling by itself; what the engine makes of it is in test_engine.py."""

import torch

from ssl_vit.training.optimizer import LossScale


def test_it_is_halved_where_a_gradient_is_not_finite_and_never_below_one():
    scale = LossScale(enabled=True)
    assert scale.factor == 65536
    assert scale.update(finite=False)  # the scale may be to blame
    assert scale.factor == 32768
    for _ in range(15):
        scale.update(finite=False)
    assert scale.factor == 1
    assert not scale.update(finite=False)  # it cannot be the scale any more
    assert scale.factor == 1


def test_it_doubles_after_two_thousand_finite_steps_in_a_row():
    scale = LossScale(enabled=True)
    for _ in range(1999):
        assert not scale.update(finite=True)
    assert scale.factor == 65536
    scale.update(finite=True)
    assert scale.factor == 131072
    for _ in range(1999):
        scale.update(finite=True)
    scale.update(finite=False)  # starts the count anew
    for _ in range(1999):
        scale.update(finite=True)
    assert scale.factor == 65536


def test_its_state_is_all_there_is_to_keep():
    scale, other = LossScale(enabled=True), LossScale(enabled=True)
    scale.update(finite=False)
    scale.update(finite=True)
    other.state.copy_(scale.state)
    assert (other.factor, other.state[1]) == (32768, 1)


def test_elsewhere_than_in_float16_nothing_is_scaled():
    scale = LossScale(enabled=False)
    assert not scale.update(finite=False)
    assert scale.factor == 1
    assert torch.equal(scale.state, torch.tensor([65536.0, 0.0]))
