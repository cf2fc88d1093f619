"""The EMA teacher alone; training/test_engine.py tests it at every ZeRO stage."""

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


def test_what_would_lose_steps_or_leave_the_range_is_refused():
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        EmaTeacher(Student().bfloat16())
    teacher = EmaTeacher(Student())
    with pytest.raises(ValueError, match="not in"):
        teacher.follow(Student(), 1.5)


def test_each_rank_moves_its_own_share_and_the_whole_where_that_is_kept_too():
    student = Student()
    teacher = EmaTeacher(copy.deepcopy(student))
    kept: dict[int, list[torch.Tensor]] = {
        id(parameter): [parameter.detach().flatten()[:1].clone(), parameter.detach().clone()]
        for module in (student, teacher)
        for parameter in module.parameters()
    }
    before = {place: [part.clone() for part in parts] for place, parts in kept.items()}
    teacher.local_parts = lambda parameter: kept[id(parameter)]
    for parameter in student.parameters():
        for part in kept[id(parameter)]:
            part.add_(1)
    teacher.follow(student, 0.5)
    for parameter in teacher.parameters():
        torch.testing.assert_close(
            kept[id(parameter)], [part + 0.5 for part in before[id(parameter)]]
        )


def test_a_share_that_is_the_whole_moves_once():
    student = Student()
    teacher = EmaTeacher(copy.deepcopy(student))
    before = teacher.module.layer.weight.clone()
    teacher.local_parts = lambda parameter: [parameter.data.view(-1), parameter.data]
    with torch.no_grad():
        student.layer.weight.add_(1)
    teacher.follow(student, 0.5)
    torch.testing.assert_close(teacher.module.layer.weight, before + 0.5)


def test_a_student_of_whom_less_is_kept_is_refused():
    def parts(parameter: torch.Tensor) -> list[torch.Tensor]:
        share = parameter.detach().flatten()[:1].clone()
        return [share] if parameter.requires_grad else [share, parameter.data]

    teacher = EmaTeacher(Student())
    teacher.local_parts = parts
    with pytest.raises(RuntimeError, match="not its student's"):
        teacher.follow(Student(), 0.5)
