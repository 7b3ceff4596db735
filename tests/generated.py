"""Generated calls: what every one must do, values of every kind, and small problems."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import sgdsde
from sgdsde import dynamics

LIBRARY = str(Path(sgdsde.__file__).parent)
LONGEST = 10.0
"""Processor seconds of a call of a few steps on a few examples."""

OWN_KINDS = (ValueError, TypeError, NotImplementedError, MemoryError)


def answer(call: Callable[[], Any]) -> Any:
    """The result of a call, or None where it was refused in one line of the library's own; anything else fails."""
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as error:
            check_refusal(error)
            result = None
    taken = time.process_time() - start
    assert taken < LONGEST, f"{taken:.1f} s"
    if isinstance(result, sgdsde.Trajectory) and result.n_runs != 1 and not caught:  # one run has no spread
        for side, band in result.losses.items():
            assert not band.mean.isnan().any(), f"{side} loss is NaN without a warning"
            assert not band.std.isnan().any(), f"{side} spread is NaN without a warning"
    if isinstance(result, float):
        assert caught or not math.isnan(result)
    return result


def check_refusal(error: Exception) -> None:
    """One line that the library itself raised, which says what was expected and what to do."""
    frames = traceback.extract_tb(error.__traceback__)
    said = "".join(traceback.format_exception(error))
    assert type(error) in OWN_KINDS, said
    assert frames[-1].filename.startswith(LIBRARY), said
    message = str(error)
    assert message == " ".join(message.split()), f"more than a line: {message!r}"
    assert " must be " in message or " cannot " in message or "; " in message, message


NUMBERS = st.one_of(
    st.floats(),
    st.floats(0, 2),
    st.integers(-3, 40),
    st.sampled_from([10**400, -(10**400), 2**53, 2**53 + 1, 2**63, 2**70, 1e308, 5e-324, -0.0]),
    st.sampled_from(
        [np.float32(0.1), np.float64(0.5), np.int64(4), np.bool_(True), np.array(0.3), np.array([1.0, 2.0])]
    ),
    st.sampled_from([torch.tensor(0.2), torch.tensor(3), torch.tensor([1.0, 2.0]), torch.tensor(math.nan)]),
    st.sampled_from([Fraction(1, 3), Fraction(10**400), Decimal("0.1"), Decimal("nan"), 0.5j, True, False]),
)
OTHERS = st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["0.1", "8", (), [4], {}, b"1", object, len, range]))
WILD = st.one_of(NUMBERS, OTHERS)
SCHEDULES = st.sampled_from(
    [lambda k: 0.1 / (k + 1), lambda k: 1 + k, lambda k: math.nan, lambda k: "x", lambda: 1, {}.get]
)
WORDS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.one_of(st.floats(1e-3, 2), WILD, SCHEDULES),
    "batch_size": st.one_of(st.integers(1, 9), WILD, SCHEDULES),
    "momentum": st.one_of(st.floats(0, 0.99), WILD),
    "dampening": st.one_of(st.just(0.0), st.floats(0, 1), WILD),
    "nesterov": st.one_of(st.booleans(), WILD),
    "weight_decay": st.one_of(st.floats(0, 1), WILD),
    "sampling": st.one_of(st.sampled_from(["with_replacement", "without_replacement", "shuffled"]), WILD),
    "drop_last": st.one_of(st.booleans(), WILD),
    "label_noise_std": st.one_of(st.floats(0, 1), WILD),
}


@st.composite
def sgds(draw: st.DrawFn) -> dict[str, Any]:
    """Words of an SGD, most of them left out."""
    words = {"lr": draw(WORDS["lr"]), "batch_size": draw(WORDS["batch_size"])}
    others = draw(st.lists(st.sampled_from(sorted(WORDS)), max_size=3, unique=True))
    return words | {name: draw(WORDS[name]) for name in others}


@st.composite
def right_sgds(draw: st.DrawFn) -> sgdsde.SGD:
    """An SGD in range, though its learning rate may be past every limit."""
    momentum = draw(st.sampled_from([0.0, 0.0, 0.5, 0.9]))
    sampling = draw(st.sampled_from(["with_replacement", "without_replacement", "shuffled"]))
    return sgdsde.SGD(
        draw(st.one_of(st.sampled_from([1e-4, 0.1, 0.5, 30.0]), st.just(lambda k: 0.2 / (k + 1)))),
        draw(st.one_of(st.integers(1, 8), st.just(lambda k: 1 + k % 3))),
        momentum=momentum,
        nesterov=momentum > 0 and draw(st.booleans()),
        weight_decay=draw(st.sampled_from([0.0, 0.0, 0.1, 3.0])),
        sampling=sampling,
        drop_last=sampling == "shuffled" and draw(st.booleans()),
        label_noise_std=draw(st.sampled_from([0.0, 0.0, 0.3])),
    )


LOSSES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.MSELoss(reduction="none"),
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.BCEWithLogitsLoss(),
    nn.HuberLoss(),
    nn.L1Loss(),
    nn.SoftMarginLoss(),
    nn.NLLLoss(),
    nn.KLDivLoss(),
    nn.PoissonNLLLoss(),
    nn.BCELoss(),
    None,
    "mse",
    lambda outputs, y: ((outputs - y) ** 2).mean(),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.complex64, torch.bool]


@st.composite
def problem_words(draw: st.DrawFn, *, right: bool = False) -> dict[str, Any]:
    """Arguments of a Problem: models, shapes, number formats and losses that may or may not belong together."""
    n, d, c = draw(st.integers(0 if not right else 1, 7)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 3]))
    dtype = draw(st.sampled_from(DTYPES[:2] if right else [*DTYPES[:2] * 4, *DTYPES]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 5)))
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-160, 1e160] if not right else [1.0]))
    float_dtype = dtype if dtype.is_floating_point else torch.float64
    x = (scale * torch.randn(n, d, generator=generator, dtype=torch.float64)).to(dtype)
    kind = draw(st.sampled_from(["linear", "mlp", "tanh", "flat", *([] if right else ["odd", "dead", "lstm", "none"])]))
    models: dict[str, Callable[[], Any]] = {
        "linear": lambda: nn.Linear(d, c),
        "mlp": lambda: nn.Sequential(nn.Linear(d, 4), nn.ReLU(), nn.Linear(4, c)),
        "tanh": lambda: nn.Sequential(nn.Linear(d, 3), nn.Tanh(), nn.Linear(3, c, bias=False)),
        "flat": lambda: nn.Sequential(nn.Linear(d, c), nn.Flatten()),
        "odd": lambda: nn.Sequential(nn.Linear(d + 1, c)),
        "dead": lambda: nn.Sequential(nn.Linear(d, 2), nn.Threshold(1e9, 0.0), nn.Linear(2, c)),
        "lstm": lambda: nn.LSTM(d, c),
        "none": lambda: None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(draw(st.integers(0, 5)))
        model = models[kind]()
    if isinstance(model, nn.Module):
        with contextlib.suppress(RuntimeError):
            other = float_dtype if right else torch.float32
            model = model.to(draw(st.sampled_from([float_dtype, float_dtype, float_dtype, other])))
    loss = draw(
        st.sampled_from(
            [LOSSES[0], LOSSES[0], LOSSES[3] if c > 1 else LOSSES[8], LOSSES[5], LOSSES[6]] if right else LOSSES
        )
    )
    targets = {
        "numbers": lambda: torch.randn(n, c, generator=generator, dtype=torch.float64).to(dtype),
        "classes": lambda: torch.randint(0, max(c, 1), (n,), generator=generator),
        "flat": lambda: torch.randn(n, generator=generator, dtype=torch.float64).to(dtype),
        "bits": lambda: torch.randint(0, 2, (n, c), generator=generator).to(float_dtype),
        "signs": lambda: (2 * torch.randint(0, 2, (n, c), generator=generator) - 1).to(float_dtype),
        "nan": lambda: torch.full((n, c), math.nan, dtype=float_dtype),
        "list": lambda: [[0.0] * c] * n,
    }
    fitting = {
        "CrossEntropyLoss": "classes",
        "NLLLoss": "classes",
        "BCEWithLogitsLoss": "bits",
        "SoftMarginLoss": "signs",
    }.get(type(loss).__name__)
    wanted = fitting or "numbers"
    y = targets[wanted if right else draw(st.sampled_from([wanted, wanted, wanted, *targets]))]()
    words = {"model": model, "x_train": x, "y_train": y, "loss": loss}
    if draw(st.booleans()):
        m = max(1, n - 1) if right else max(0, n - 1)
        words |= {"x_test": x[:m], "y_test": y[:m]}
        if not right and draw(st.integers(0, 5)) == 0:
            words.pop(draw(st.sampled_from(["x_test", "y_test"])))
    return words


DYNAMICS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "GradientFlow": {},
    "GradientDescent": {},
    "MomentRecursion": {"epoch_starts": WILD},
    "ReducedMoments": {"tolerance": WILD},
    "ModalMoments": {},
    "OrnsteinUhlenbeck": {"freeze": st.one_of(st.sampled_from(["init", "mean_path"]), WILD)},
    "MomentEquations": {"order": st.one_of(st.sampled_from([1, 2]), WILD), "rtol": WILD},
    "SDEPaths": {"n_paths": st.one_of(st.integers(2, 30), WILD), "seed": WILD},
    "LinearizedSGD": {"n_runs": st.one_of(st.integers(2, 30), WILD), "seed": WILD},
    "GaussianClosure": {},
    "Volterra": {"rank": st.one_of(st.integers(0, 9), WILD), "n_probes": WILD},
    "MovingKernel": {"tolerance": WILD, "rank": WILD, "first_interval": WILD},
}


@st.composite
def theories(draw: st.DrawFn) -> tuple[type[dynamics.Dynamics], dict[str, Any]]:
    """A dynamics and at most one word of it."""
    name = draw(st.sampled_from(sorted(DYNAMICS)))
    words = DYNAMICS[name]
    chosen = draw(st.lists(st.sampled_from(sorted(words)), max_size=1)) if words else []
    return getattr(dynamics, name), {word: draw(words[word]) for word in chosen}
