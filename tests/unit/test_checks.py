"""Checked values come back in their canonical type, or an error says what was expected, what came, what to do."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from sgdsde import _checks


def test_a_complaint_names_expected_received_and_remedy():
    assert _checks.complaint("lr", "positive", -1) == "lr must be positive, got -1"
    assert _checks.complaint("lr", "positive", -1, "try 0.1") == "lr must be positive, got -1; try 0.1"


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor([2.0])])
def test_numbers_of_every_kind_become_python_numbers(value):
    assert type(_checks.finite_number("a", value)) is float
    assert type(_checks.whole_number("a", value)) is int
    assert _checks.positive_number("a", value) == _checks.nonnegative_number("a", value) == 2


@pytest.mark.parametrize(
    "value", ["2", None, [2], 2j, True, torch.tensor([1.0, 2.0]), torch.tensor(1j), np.array([1.0])]
)
def test_other_kinds_are_type_errors(value):
    for check in (_checks.finite_number, _checks.whole_number, _checks.positive_number):
        with pytest.raises(TypeError, match=r"^a must be a real number, got .*; remedy$"):
            check("a", value, remedy="remedy")


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (_checks.finite_number, math.nan, "a must be finite, got nan"),
        (_checks.positive_number, 0, "a must be positive, got 0"),
        (_checks.nonnegative_number, -1e-300, "a must be zero or positive, got -1e-300"),
        (_checks.fraction_below_one, 1, "a must be in [0, 1), got 1"),
        (_checks.whole_number, 0.5, "a must be a whole number, got 0.5"),
        (_checks.whole_number, -1, "a must be at least 0, got -1"),
        (_checks.real_floating, torch.ones(0, 2), "a must be non-empty, got shape [0, 2]"),
        (
            _checks.real_floating,
            torch.tensor([[0.0], [math.nan]]),
            "got 1 NaN or infinite entries, the first at index [1, 0]",
        ),
    ],
)
def test_values_out_of_range_are_value_errors(check, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check("a", value)


def test_zero_is_nonnegative_and_a_fraction():
    assert _checks.nonnegative_number("a", 0) == _checks.fraction_below_one("a", 0) == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "a must be a torch.Tensor, got list; use torch.as_tensor(...)"),
        (
            torch.ones(2, dtype=torch.int64),
            "a must be a real floating-point tensor, got torch.int64; convert it with a.to",
        ),
        (torch.ones(2, dtype=torch.complex64), "a must be a real floating-point tensor, got torch.complex64"),
    ],
)
def test_tensors_of_another_kind_are_type_errors(value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        _checks.real_floating("a", value)


def test_words_come_from_a_closed_set():
    assert _checks.word("a", "x", ("x", "y")) == "x"
    with pytest.raises(ValueError, match="a must be one of 'x', 'y', got 'z'"):
        _checks.word("a", "z", ("x", "y"))


def test_numbers_beyond_floats_are_refused_in_words():
    for value in (10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"lr must be below 1.8e308, got a number beyond the range of float64"):
            _checks.finite_number("lr", value)


def test_whole_numbers_are_not_rounded():
    assert _checks.whole_number("seed", 2**53 + 1) == 2**53 + 1
    assert _checks.whole_number("seed", 8.0) == 8
