"""The command line: what it writes, what it says, and one line for everything that goes wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.cli import INTERNAL, OK, USAGE
from tests.command_line import SMALL, SYNTHETIC, call, call_python


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_compare_writes_what_the_library_computes(tmp_path, capsys):
    assert call("compare", SMALL, "--lr 0.3 --steps 30 --runs 6 --out new/folder") == OK
    folder = tmp_path / "new" / "folder"
    names = {"comparison.png", "comparison.csv", "predicted.npz", "measured.npz", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]

    data = sgdsde.datasets.digits(16, 8)
    model = sgdsde.networks.MLP(64, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    sgd = sgdsde.SGD(0.3, 4)
    expected = sgdsde.compare(sgdsde.predict(problem, sgd, 30), sgdsde.run_ensemble(problem, sgd, 30, 6))
    measured = sgdsde.Trajectory.load(folder / "measured.npz")
    assert torch.equal(measured.train_loss.samples, expected.measured.train_loss.samples)
    assert str(expected) in capsys.readouterr().out

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["problem_digest"] == problem.digest
    assert (manifest["lr"], manifest["verdict"]) == (0.3, expected.verdict.name)
    assert manifest["configuration"]["batch_size"] == 4
    assert manifest["seeds"] == {"examples": 0, "initial_weights": 0, "batches": 0}
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["wall_time_s"]) == {"kernel", "prediction", "6 runs"}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    with (folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == expected.train.steps.tolist()
    assert float(rows[-1]["test_predicted"]) == float(expected.test.predicted[-1])


def test_results_are_not_overwritten_unasked(tmp_path, capsys):
    words = f"predict {SYNTHETIC} --steps 4 --out here"
    assert call(words) == OK
    before = (tmp_path / "here" / "predicted.npz").read_bytes()
    assert call(words, "--seed 1") == USAGE
    error = "sgdsde: error: --out must be a folder without results, got here with prediction.png; add --overwrite\n"
    assert capsys.readouterr().err == error
    assert (tmp_path / "here" / "predicted.npz").read_bytes() == before
    (tmp_path / "here" / "mine.txt").write_text("mine")
    assert call(words, "--seed 1 --overwrite") == OK
    assert (tmp_path / "here" / "predicted.npz").read_bytes() != before
    assert (tmp_path / "here" / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_failed_write_leaves_old_results_whole(tmp_path, monkeypatch, capsys):
    words = f"predict {SYNTHETIC} --steps 4 --out here"
    assert call(words) == OK
    before = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}

    def fail(*_):
        raise RuntimeError("no\nink")

    monkeypatch.setattr(sgdsde.Trajectory, "plot", fail)
    assert call(words, "--seed 1 --overwrite") == INTERNAL
    assert (
        capsys.readouterr().err
        == "sgdsde: error: RuntimeError: no ink (a fault of sgdsde; SGDSDE_DEBUG=1 shows where)\n"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_ntk_saves_the_kernel_and_prints_its_spectrum(tmp_path, capsys):
    assert call("ntk", SMALL, "--out k --top 2") == OK
    arrays = np.load(tmp_path / "k" / "kernel.npz")
    data = sgdsde.datasets.digits(16, 8)
    model = sgdsde.networks.MLP(64, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    linearization = sgdsde.linearize(problem)
    assert np.array_equal(arrays["kernel"], linearization.kernel.numpy())
    assert np.array_equal(arrays["cross_kernel"], linearization.cross_kernel.numpy())
    printed = capsys.readouterr().out
    top = np.sort(np.linalg.eigvalsh(arrays["kernel"]))[::-1]
    assert f"largest eigenvalues: {top[0]:.5g} {top[1]:.5g}\n" in printed
    assert f"16 x 16, trace {np.trace(arrays['kernel']):.6g}, rank 16" in printed
    limit = sgdsde.stability.max_lr(linearization, 4)
    assert f"batches of 4 with replacement: {limit:.6g}\n" in printed
    assert json.loads((tmp_path / "k" / "manifest.json").read_text())["max_lr"] == pytest.approx(limit)


def test_a_part_of_the_limit_is_meant_by_half_and_x(tmp_path, capsys):
    for lr in ("half", "0.5x"):
        assert call("predict", SYNTHETIC, f"--steps 2 --lr {lr} --out {lr}") == OK
    printed = capsys.readouterr().out
    number, limit = map(float, re.search(r"lr = (\S+), 0.5 of the mean-square limit (\S+),", printed).groups())
    assert number == pytest.approx(limit / 2, rel=1e-5)
    rates = [json.loads((tmp_path / lr / "manifest.json").read_text())["lr"] for lr in ("half", "0.5x")]
    assert rates[0] == rates[1] == pytest.approx(number, rel=1e-5)


def test_a_part_of_the_limit_knows_every_word_of_the_training(tmp_path, capsys):
    assert call("predict", SYNTHETIC, "--steps 2 --lr 0.5x --momentum 0.8 --nesterov --weight-decay 0.3 --out n") == OK
    data = sgdsde.datasets.synthetic(16, 8, 5)
    model = sgdsde.networks.MLP(5, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    limit = sgdsde.stability.max_lr(problem, 4, momentum=0.8, nesterov=True, weight_decay=0.3)
    lr = json.loads((tmp_path / "n" / "manifest.json").read_text())["lr"]
    assert lr == pytest.approx(limit / 2, rel=1e-6)


@pytest.mark.parametrize(("loss", "module"), [("ce", "CrossEntropyLoss"), ("logistic", "SoftMarginLoss")])
def test_other_losses_take_a_part_of_the_limit_of_their_quadratic(loss, module, tmp_path, capsys):
    assert call("predict", SMALL, f"--loss {loss} --steps 2 --lr 0.25x --dynamics GaussianClosure --out {loss}") == OK
    said = capsys.readouterr().out
    assert f"loss={module}" in said
    assert "of the quadratic at the initial outputs" in said
    data = sgdsde.datasets.digits(16, 8, target="class" if loss == "ce" else "sign")
    model = sgdsde.networks.MLP(64, 16, data.out_features, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=getattr(torch.nn, module)())
    manifest = json.loads((tmp_path / loss / "manifest.json").read_text())
    assert manifest["problem_digest"] == problem.digest
    assert manifest["lr"] == pytest.approx(sgdsde.stability.max_lr(problem, 4) / 4, rel=1e-5)
    assert call("ntk", SMALL, f"--loss {loss} --out k{loss}") == OK
    assert "full batch, of the quadratic at the initial outputs: " in capsys.readouterr().out


@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_other_networks_and_targets(network, capsys):
    words = f"--network {network} --width 4 --depth 2 --target onehot --image-size 4 --steps 2 --out {network}"
    assert call("predict --quiet --n-train 6 --n-test 3", words) == OK
    assert "n_outputs=10" in capsys.readouterr().out


def test_dynamics_by_name_with_arguments(tmp_path):
    assert call("predict", SYNTHETIC, "--steps 2 --out d --dynamics OrnsteinUhlenbeck(freeze='init')") == OK
    assert "freeze='init'" in json.loads((tmp_path / "d" / "manifest.json").read_text())["dynamics"]


def test_past_the_limit_is_one_line_of_warning(capsys):
    assert call("predict", SYNTHETIC, "--lr 9 --steps 3 --out w") == OK
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sgdsde: warning: lr=9 is beyond the mean-square limit ")


def test_eoc(capsys):
    assert call("eoc --activation erf --sigma-b 0.3") == OK
    edge = sgdsde.meanfield.edge_of_chaos("erf", 0.3)
    assert f"sigma_w = {edge.sigma_w:.10g}, variance q = {edge.q:.10g}\n" in capsys.readouterr().out


def test_help_names_every_command_and_option_with_its_default(capsys):
    assert call() == OK
    overview = capsys.readouterr().out
    assert all(
        f"• {name} " in overview
        for name in ("compare", "predict", "diagnose", "sweep", "ntk", "prune", "eoc", "explore")
    )
    assert call("compare --help") == OK
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for option, default in {"runs": 64, "lr": "half", "batch-size": 8, "data": "digits", "out": "auto"}.items():
        assert re.search(rf"--{option} [^-]*.*?\(default: {default}\)", text), option
    assert text.count("(default: ") == len(re.findall(" --[a-z]", text)) - 1 == 35
    assert call("--version") == OK
    assert capsys.readouterr().out == f"sgdsde {sgdsde.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "compare --data imagenet",
            "invalid choice 'imagenet' for argument '--data'. Expected one of ('digits', 'mnist',",
        ),
        ("compare --runs many", "--runs must be a whole number, got 'many'; see sgdsde compare --help"),
        ("compare --momentum big", "--momentum must be a number, got 'big'; see sgdsde compare --help"),
        ("compare --nope 3", "Unrecognized options: --nope, 3; see sgdsde compare --help"),
        (
            "compair",
            "Unrecognized options: compair Available subcommands: "
            "compare, predict, diagnose, sweep, ntk, prune, eoc, explore; see sgdsde --help",
        ),
        ("compare --runs 1", "--runs must be at least 2, got 1"),
        ("compare --steps 0", "--steps must be at least 1, got 0"),
        (
            "predict --lr fast",
            "--lr must be a positive number, or a part of the limit, got fast; write 0.1, half or 0.8x",
        ),
        ("predict --lr -1", "--lr must be a positive number, or a part of the limit, got -1; write"),
        ("predict --lr nan", "--lr must be a positive number, or a part of the limit, got nan; write"),
        (
            "predict --loss ce --target sign",
            "--target must be one that fits --loss ce, got sign; use class, or another",
        ),
        ("predict --loss logistic --target onehot", "--target must be one that fits --loss logistic, got onehot; use"),
        ("predict --data synthetic --loss logistic", "--loss must be mse or huber for synthetic data, got --loss logi"),
        ("predict --dynamics Adam", "--dynamics must be one of GaussianClosure, GradientDescent, "),
        ("predict --dynamics __import__('os')", "--dynamics must be one of GaussianClosure, GradientDescent, "),
        ("predict --nesterov", "nesterov must be used with momentum and without dampening, got momentum=0.0"),
        ("predict --device abacus", "--device must be a device that torch can use here, got abacus ("),
        ("predict --activation swish", "activation must be one of 'relu', 'leaky_relu'"),
        (
            "predict --n-train 1700",
            "n_train + n_test must be at most 1797, all the digits, got n_train=1700, n_test=128",
        ),
        ("predict --data synthetic --network cnn", "--network must be mlp or resnet for synthetic data, got cnn"),
        ("eoc --activation relu", "sigma_b of relu must be 0, got sigma_b=0.1"),
        ("diagnose --tolerance 0", "--tolerance must be positive, got 0.0"),
        ("diagnose --steps 0", "--steps must be at least 1, got 0"),
        ("sweep --batch-sizes 0", "--batch-sizes must be at least 1, got 0"),
        ("sweep --batch-sizes many", "--batch-sizes must be whole numbers, got ['many']; see sgdsde sweep --help"),
        ("sweep --lrs fast", "--lrs must be a positive number, or a part of the limit, got fast; write 0.1, half or"),
        ("ntk --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("predict --width 99999999999999999999", "--width must be below 2^31, got 99999999999999999999"),
        ("ntk --seed -1", "--seed must be between 0 and 2^63 - 1, got -1"),
        ("ntk --seed 9223372036854775808", "--seed must be between 0 and 2^63 - 1, got 9223372036854775808"),
    ],
)
def test_errors_are_one_line_and_exit_code_two(words, message, capsys, tmp_path):
    assert call(words) == USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"sgdsde: error: {message}")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_files_are_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    monkeypatch.setenv("SGDSDE_DATA", str(tmp_path))
    assert call("predict --data mnist --n-train 8 --n-test 4") == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "train-labels-idx1-ubyte" in line


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert call("ntk --out taken") == USAGE
    assert capsys.readouterr().err == "sgdsde: error: --out must be a folder, got the file taken\n"


def test_without_tyro_the_remedy_is_one_line(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "tyro" or name.startswith("sgdsde.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sgdsde.cli, "parser", raising=False)
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert call("compare") == USAGE
    message = "sgdsde: error: the command line needs tyro; install it with: pip install 'sgdsde[cli]'\n"
    assert capsys.readouterr().err == message


def test_help_and_usage_errors_need_no_torch():
    code = """
import sys
from sgdsde.cli import main
codes = [main([])] + [main([name, "--help"]) for name in "compare predict diagnose sweep ntk eoc explore".split()]
codes += [main(["--version"]), main(["compare", "--nope"])]
heavy = {"torch", "numpy", "scipy", "matplotlib", "pandas"} & set(sys.modules)
assert (codes, heavy) == ([0] * 9 + [2], set()), (codes, heavy)
"""
    answer = call_python("-c", code)
    assert answer.returncode == 0, answer.stderr


def test_the_module_runs_and_warnings_made_errors_stay_outside():
    answer = call_python(*f"-W error::UserWarning -m sgdsde predict {SYNTHETIC} --lr 9 --steps 2".split())
    assert answer.returncode == OK
    assert answer.stderr.count("\n") == 1
    assert "written to sgdsde-predict-synthetic-mlp16-batch4-seed0: prediction.png" in answer.stdout


@pytest.mark.parametrize("out", ["/dev/null/x", "/proc/nothing/here"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(out, capsys):
    assert call("predict", SYNTHETIC, f"--steps 2 --out {out}") == USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"sgdsde: error: --out must be in a folder that can be written, got {out}, .*\n", said.err)


@pytest.mark.parametrize("theory", ["SDEPaths(n_paths=-1)", "SDEPaths(paths=3)", "(" * 200, "SDEPaths(1,2,3,4,5,6,7)"])
def test_a_theory_that_cannot_be_built_names_the_option(theory, capsys):
    assert call("predict", SYNTHETIC, f"--steps 2 --dynamics {theory}") == USAGE
    error = capsys.readouterr().err
    assert error.startswith("sgdsde: error: --dynamics must be one of ")
    assert ("n_paths must be at least 2, got -1" in error) == ("-1" in theory)
