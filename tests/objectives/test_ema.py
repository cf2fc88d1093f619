"""The EMA teacher alone; training/test_engine.py has it at every ZeRO stage."""

import copy

import pytest
import torch
from torch import nn

from ssl_vit.objectives.ema import EmaTeacher


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


def test_it_is_the_exponential_moving_average_of_its_student():
    torch.manual_seed(0)
    student = Student()
    teacher = EmaTeacher(copy.deepcopy(student))
    expected = student.layer.weight.detach().double()
    for step in range(20):
        with torch.no_grad():
            student.layer.weight.add_(torch.randn(2, 3))
            student.get_buffer("count").add_(1)
        momentum = 0.9 + 0.004 * step
        teacher.follow(student, momentum)
        expected = momentum * expected + (1 - momentum) * student.layer.weight.detach().double()
    torch.testing.assert_close(teacher.module.layer.weight.double(), expected, rtol=0, atol=1e-6)
    assert teacher.module.get_buffer("count") == 20


def test_a_small_step_is_not_rounded_away():
    student = Student()
    teacher = EmaTeacher(copy.deepcopy(student))
    before = teacher.module.layer.weight.clone()
    with torch.no_grad():
        student.layer.weight.add_(1e-3)
    teacher.follow(student, 0.9995)
    torch.testing.assert_close(
        teacher.module.layer.weight - before, torch.full((2, 3), 5e-7), rtol=0.2, atol=0
    )


def test_no_gradient_reaches_it():
    student = Student()
    teacher = EmaTeacher(copy.deepcopy(student))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.ones(1, 3, requires_grad=True)).requires_grad


def test_what_would_lose_updates_or_leave_the_range_is_refused():
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        EmaTeacher(Student().bfloat16())
    teacher = EmaTeacher(Student())
    with pytest.raises(ValueError, match="not in"):
        teacher.follow(Student(), 1.5)
