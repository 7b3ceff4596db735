"""Data sets: what the words mean, which examples are drawn, and the spectrum of synthetic inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats

from sgdsde import datasets
from sgdsde.datasets import LogNormal, PowerLaw, cifar10, digits, mnist, synthetic

F64 = torch.float64
ERROR_RATE = 1e-7


def has_file(name: str) -> bool:
    root = os.environ.get("SGDSDE_DATA", "")
    return bool(root) and any((Path(root) / f"{name}{suffix}").is_file() for suffix in ("", ".gz"))


needs_mnist = pytest.mark.skipif(
    not has_file("mnist/train-images-idx3-ubyte"), reason="SGDSDE_DATA is unset or lacks MNIST"
)
needs_cifar = pytest.mark.skipif(
    not has_file("cifar-10-batches-bin/test_batch.bin"), reason="SGDSDE_DATA is unset or lacks CIFAR-10"
)
every_image_set = pytest.mark.parametrize(
    "load", [digits, pytest.param(mnist, marks=needs_mnist), pytest.param(cifar10, marks=needs_cifar)]
)


# ---- importing


def test_import_does_not_load_scikit_learn():
    code = "import sys, sgdsde.datasets; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- images


def digits_by_hand() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def test_digits_are_rows_of_scikit_learns_table():
    data = digits(100, 60, center="none", dtype=F64)
    table, labels = digits_by_hand()
    chosen = torch.cat([data.x_train, data.x_test])
    scale = 16 / chosen.max()  # the table's largest value is 16, and one number divided everything
    rows = {tuple(row.round().astype(int)): label for row, label in zip(table, labels)}
    assert len(rows) == 1797
    found = [tuple(row) for row in (chosen * scale).round().int().tolist()]
    assert torch.allclose(chosen * scale, (chosen * scale).round(), atol=1e-9)
    assert len(set(found)) == 160  # without replacement, and no training example is a test example
    assert [rows[row] for row in found] == torch.cat([data.labels_train, data.labels_test]).tolist()


@every_image_set
def test_centering_uses_the_training_set_alone(load):
    raw = load(50, 40, center="none", dtype=F64)
    for center, mean in [("pixel", raw.x_train.mean(0)), ("global", raw.x_train.mean()), ("none", torch.zeros(()))]:
        data = load(50, 40, center=center, dtype=F64)
        scale = ((raw.x_train - mean) ** 2).mean().sqrt()
        assert torch.allclose(data.x_train, (raw.x_train - mean) / scale, rtol=1e-9, atol=1e-12)
        assert torch.allclose(data.x_test, (raw.x_test - mean) / scale, rtol=1e-9, atol=1e-12)
        assert float((data.x_train**2).mean()) == pytest.approx(1)


@every_image_set
def test_targets_encode_the_labels(load):
    sign, onehot, classes = (load(60, 40, target=target) for target in ("sign", "onehot", "class"))
    for part in ("train", "test"):
        labels = getattr(sign, f"labels_{part}")
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= set(range(10))
        signs = [[1.0 if label < 5 else -1.0] for label in labels.tolist()]
        assert getattr(sign, f"y_{part}").tolist() == signs
        assert torch.equal(getattr(onehot, f"y_{part}"), torch.eye(10)[labels])
        assert torch.equal(getattr(classes, f"y_{part}"), labels)
    assert (sign.out_features, onehot.out_features, classes.out_features) == (1, 10, 10)


@every_image_set
def test_the_seed_decides_the_subset_and_nothing_global_moves(load):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, other = load(30, 20), load(30, 20), load(30, 20, seed=1)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(a.x_train, b.x_train)
    assert not torch.equal(a.x_train, other.x_train)
    larger = load(50, 20)
    assert torch.equal(larger.labels_train[:30], a.labels_train)
    assert torch.equal(larger.labels_test, a.labels_test)


@every_image_set
def test_image_size_averages_patches(load):
    full = load(20, 10, center="none", flatten=False, dtype=F64).x_train
    size = full.shape[-1] // 4
    small = load(20, 10, center="none", flatten=False, image_size=size, dtype=F64).x_train
    pooled = torch.nn.functional.avg_pool2d(full, 4)
    assert small.shape == pooled.shape
    ratio = float((pooled**2).mean().sqrt())
    assert torch.allclose(small * ratio, pooled, rtol=1e-9, atol=1e-12)
    flat = load(20, 10, center="none", flatten=True, image_size=size, dtype=F64).x_train
    assert torch.equal(flat, small.flatten(1))


@needs_mnist
def test_mnist_is_the_real_one():
    data = mnist(60000, 10000, target="class", center="none")
    assert data.x_train.shape == (60000, 1, 28, 28)
    # Digit counts and the mean and deviation that everyone normalizes MNIST with.
    assert data.y_train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.y_test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = data.x_train / data.x_train.max()
    assert float(pixels.mean(dtype=F64)) == pytest.approx(0.1307, abs=5e-5)
    assert float(pixels.square().mean(dtype=F64)) == pytest.approx(0.1307**2 + 0.3081**2, abs=5e-5)
    with pytest.raises(ValueError, match=r"n_train must be at most 60000, got 60001; .*mnist holds no more examples"):
        mnist(60001, 10)


@needs_cifar
def test_cifar10_is_the_real_one():
    data = cifar10(100, 10000, target="class", center="none")
    assert data.x_test.shape == (10000, 3, 32, 32)
    assert data.y_test.bincount().tolist() == [1000] * 10
    # Red, green, blue: the colors of a sky are at the top, so planes and rows are not interchanged.
    pixels = data.x_test.double() / data.x_test.max()
    means = pixels.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4942, 0.4851, 0.4504], abs=5e-4)
    blue_minus_red = pixels[:, 2] - pixels[:, 0]
    assert float(blue_minus_red[:, :8].mean()) > float(blue_minus_red[:, -8:].mean())


def test_a_dataset_moves_and_unpacks():
    data = digits(20, 10, target="class")
    double = data.to(dtype=F64)
    assert (double.x_train.dtype, double.y_train.dtype, double.labels_test.dtype) == (F64, torch.int64, torch.int64)
    assert torch.equal(double.x_test.float(), data.x_test)
    assert list(data.tensors()) == ["x_train", "y_train", "x_test", "y_test"]
    assert (data.n_train, data.n_test, data.in_features) == (20, 10, 64)
    assert (
        repr(data) == "Dataset('digits', x_train=[20, 64], y_train=[20], x_test=[10, 64], y_test=[10], torch.float32)"
    )
    with pytest.raises(AttributeError):
        data.name = "other"
    with pytest.raises(TypeError, match=r"dtype must be a real floating-point torch.dtype, got torch.int64"):
        data.to(dtype=torch.int64)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"n_train": 0}, ValueError, "n_train must be at least 1, got 0"),
        ({"n_test": 2.5}, ValueError, "n_test must be a whole number, got 2.5"),
        ({"n_train": 1700}, ValueError, r"n_train \+ n_test must be at most 1797, all the digits, got n_train=1700"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"target": "labels"}, ValueError, "target must be one of 'sign', 'onehot', 'class', got 'labels'"),
        ({"center": "mean"}, ValueError, "center must be one of 'pixel', 'global', 'none', got 'mean'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be a real floating-point torch.dtype, got torch.int32"),
        ({"image_size": 3}, ValueError, "image_size must be a divisor of 8, got 3; use one of 1, 2, 4, 8"),
        ({"n_train": 1}, ValueError, "training inputs must be different from each other, got 1 examples .* increase"),
    ],
)
def test_bad_words_are_refused_by_name(words, error, message):
    with pytest.raises(error, match=message):
        digits(**words)


def test_without_scikit_learn_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sgdsde\[data\]'"):
        digits()


# ---- synthetic


def covariance_z(x: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """z of the trace and of the log determinant of X^T X, both by their exact means and variances for normal rows."""
    n, d = x.shape
    trace = (np.sum(x**2) - n * variances.sum()) / np.sqrt(2 * n * np.sum(variances**2))
    degrees = (n - np.arange(d)) / 2  # det is a product of independent chi-square variables (Bartlett)
    mean = np.sum(special.digamma(degrees) + np.log(2) + np.log(variances))
    log_det = (np.linalg.slogdet(x.T @ x)[1] - mean) / np.sqrt(np.sum(special.polygamma(1, degrees)))
    return np.array([trace, log_det])


@pytest.mark.parametrize("spectrum", [PowerLaw(1.5), PowerLaw(0.0), LogNormal(0.7)])
def test_synthetic_inputs_have_the_stated_spectrum(spectrum):
    n, d, limit = 4000, 6, stats.norm.isf(ERROR_RATE / 2)
    x = synthetic(n, 1, d, spectrum=spectrum, dtype=F64, seed=3).x_train.numpy()
    variances = spectrum.variances(d, 3)
    assert np.all(np.diff(variances) <= 0)
    variances = variances * d / variances.sum()
    z = covariance_z(x, variances)
    assert np.all(np.abs(z) < limit), f"z={z}"
    # Negative controls: all variances 20 percent larger; a steeper decay of the same trace.
    assert np.all(np.abs(covariance_z(x, 1.2 * variances)) > limit)
    steeper = variances / np.arange(1, d + 1)
    assert abs(covariance_z(x, steeper * d / steeper.sum())[1]) > limit


@pytest.mark.parametrize("teacher", ["linear", "mlp"])
def test_synthetic_data_are_rank_deficient_and_duplicated_on_request(teacher):
    data = synthetic(30, 8, 12, 2, rank=5, n_duplicates=3, noise_std=0.2, teacher=teacher, dtype=F64)
    assert (
        torch.linalg.matrix_rank(data.x_train) == torch.linalg.matrix_rank(torch.cat([data.x_train, data.x_test])) == 5
    )
    assert (data.x_train.abs() > 0).all()  # in random directions, not by empty columns
    assert torch.equal(data.x_train[-3:], data.x_train[:3])
    assert torch.equal(data.y_train[-3:], data.y_train[:3])
    assert len(data.x_train.unique(dim=0)) == 27
    plain = synthetic(30, 8, 12, 2, rank=5, noise_std=0.2, teacher=teacher, dtype=F64)
    assert torch.equal(plain.x_train[:27], data.x_train[:27])
    assert data.y_train.shape == (30, 2)
    assert data.labels_train is None


def test_a_linear_teacher_is_solved_exactly_and_noise_has_its_size():
    clean = synthetic(400, 300, 5, 2, dtype=F64)
    weights = torch.linalg.lstsq(clean.x_train, clean.y_train).solution
    assert torch.allclose(clean.x_test @ weights, clean.y_test, atol=1e-10)
    assert float((clean.y_train**2).mean()) == pytest.approx(1)
    noisy = synthetic(400, 300, 5, 2, noise_std=0.3, dtype=F64)
    assert torch.equal(noisy.x_train, clean.x_train)
    for part, count in (("train", 800), ("test", 600)):
        noise = getattr(noisy, f"y_{part}") - getattr(clean, f"y_{part}")
        low, high = stats.chi2.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], count)
        assert low < float((noise**2).sum()) / 0.09 < high
    curved = synthetic(400, 300, 5, 2, teacher="mlp", dtype=F64)
    residual = curved.y_train - curved.x_train @ torch.linalg.lstsq(curved.x_train, curved.y_train).solution
    assert float((residual**2).mean()) > 0.01


def test_synthetic_prefixes_seeds_and_dtypes():
    small, large = synthetic(10, 5, 4, dtype=F64), synthetic(25, 5, 4, dtype=F64)
    assert torch.equal(small.x_train, large.x_train[:10])
    assert torch.equal(small.x_test, large.x_test)
    assert not torch.equal(small.x_train, synthetic(10, 5, 4, seed=1, dtype=F64).x_train)
    assert torch.equal(synthetic(10, 5, 4).x_train, small.x_train.float())
    white = PowerLaw(0.0).variances(4, 0)
    assert white.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("arguments", "words", "error", "message"),
    [
        ((0, 5, 4), {}, ValueError, "n_train must be at least 1, got 0"),
        ((10, 5, 4, 0), {}, ValueError, "out_features must be at least 1, got 0"),
        ((10, 5, 4), {"rank": 5}, ValueError, "rank must be at most in_features=4, got 5"),
        ((10, 5, 4), {"n_duplicates": 6}, ValueError, "n_duplicates must be at most half of n_train=10, got 6"),
        ((10, 5, 4), {"noise_std": -1}, ValueError, "noise_std must be zero or positive, got -1"),
        ((10, 5, 4), {"teacher": "tree"}, ValueError, "teacher must be one of 'linear', 'mlp', got 'tree'"),
        ((10, 5, 4), {"spectrum": "power"}, TypeError, r"spectrum must be PowerLaw\(...\) or LogNormal\(...\), got"),
        ((10, 5, 4), {"dtype": torch.int64}, TypeError, "dtype must be a real floating-point torch.dtype"),
    ],
)
def test_synthetic_refuses_by_name(arguments, words, error, message):
    with pytest.raises(error, match=message):
        synthetic(*arguments, **words)


def test_spectra_refuse_negative_parameters():
    with pytest.raises(ValueError, match="exponent must be zero or positive, got -1"):
        PowerLaw(-1)
    with pytest.raises(ValueError, match=r"log_std must be zero or positive, got -0\.5"):
        LogNormal(-0.5)
    assert datasets.PowerLaw(2) == PowerLaw(2)
