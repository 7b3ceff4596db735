"""The explorer's page: whole in one file, served to this machine alone, with runs where it is asked for them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.cli import OK, USAGE, exploration
from sgdsde.explorer import Server, export_page, loopback_address, predicted_curves
from tests.command_line import SYNTHETIC, call, call_python

pytest.importorskip("bokeh")
QUICK = f"{SYNTHETIC} --steps 4 --momenta 0 --samplings with_replacement --rates 3 --batch-sizes 2 4"


@pytest.fixture(scope="module")
def server() -> Server:
    data = sgdsde.datasets.synthetic(8, 5, 3)
    model = sgdsde.networks.MLP(3, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())
    start = sgdsde.SGD(0.1, 2)
    curves = predicted_curves(sgdsde.linearize(problem), start, 6, batch_sizes=[2, 4], n_rates=5)
    return Server(curves, problem, "a problem", start, n_runs=3)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_addresses_of_this_machine_are_taken(address: str) -> None:
    assert loopback_address(address) == address.replace("localhost", "127.0.0.1")


@pytest.mark.parametrize("address", ["0.0.0.0", "", "::", "192.168.0.1", "8.8.8.8", "example.org", "*", "127.0.0.1:80"])
def test_other_addresses_are_refused(address: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="address must be a loopback address"):
        server.listen(address)
    assert call("explore", QUICK, f"--address={address}") == USAGE
    assert "address must be a loopback address" in capsys.readouterr().err


@pytest.fixture
def port(server: Server) -> Iterator[int]:
    listening = server.listen()
    listening.start()
    loop = listening.io_loop
    assert server.url(listening) == f"http://127.0.0.1:{listening.port}/"
    thread = threading.Thread(target=loop.start)
    # The loop belongs to this thread until it runs in the other.
    thread.start()
    yield listening.port
    loop.add_callback(listening.stop)
    loop.add_callback(loop.stop)
    thread.join(timeout=20)
    listening.unlisten()


def test_the_page_is_served_and_other_sites_cannot_talk_to_it(port: int) -> None:
    status, text = asked(port, "/")
    assert status == 200
    assert "sgdsde explorer" in text
    assert re.findall(r'(?:src|href)="https?://', text) == []
    for origin in ("http://example.org", "null", f"http://127.0.0.1:{port + 1}"):
        words = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        words |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": origin}
        assert asked(port, "/ws", **words)[0] == 403


def asked(port: int, path: str, **words: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=words)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_the_button_measures_the_setting_that_is_shown(server: Server) -> None:
    from bokeh.document import Document

    document = Document()
    server._open(document)
    controls = {name: document.get_model_by_name(name) for name in ("lr", "batch", "momentum", "sampling")}
    controls["lr"].value, controls["batch"].value = controls["lr"].categories[1], "4"
    sgd = server.shown(controls)
    assert (sgd.lr, sgd.batch_size) == (server.curves.rates[1], 4)
    columns = server.measured(sgd)
    expected = sgdsde.run_ensemble(server.problem, sgd, 6, 3, seed=0)
    for side, data in zip(expected.losses.values(), columns):
        assert data["mean"] == pytest.approx(side.mean[1:].numpy(), rel=1e-6)
        assert data["step"].tolist() == expected.steps[1:].tolist()
    controls["lr"].value = controls["lr"].categories[-1]
    assert server.shown(controls) is None


def test_the_export_needs_no_network_and_is_small(server: Server, tmp_path: Path) -> None:
    path = export_page(server.curves, tmp_path / "page.html", about="a problem", start=server.start)
    text = path.read_text()
    assert path.stat().st_size < 5e6
    tags = re.sub(r"(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert tags.count("<script") > 2
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", tags) == []
    assert "measured train" not in text
    assert "predicted train" in text


def test_the_command_writes_the_page_and_answers_in_json(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("explore", QUICK, "--export page.html --out folder --json") == OK
    answer = json.loads(capsys.readouterr().out)
    assert (answer["page"], answer["folder"], answer["command"]) == ("page.html", "folder", "explore")
    assert answer["configuration"]["rates"] == 3
    assert Path("page.html").stat().st_size > 1e6
    assert call("explore", QUICK, "--export page.html") == USAGE
    assert "--export must be a new file, got page.html, which is there; add --overwrite" in capsys.readouterr().err
    assert call("explore --config folder --export again.html --quiet") == OK
    assert Path("again.html").stat().st_size == pytest.approx(Path("page.html").stat().st_size, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--loss huber", "--loss must be mse for explore, got huber"),
        ("--port 70000", "--port must be between 0 and 65535, got 70000"),
        ("--json", "--json must be given with --export, --out or --dry-run, got a page to serve"),
        ("--momenta 1", "--momenta must be in [0, 1), got 1.0"),
        ("--rates 1", "--rates must be at least 2, got 1"),
        ("--runs 1", "--runs must be at least 2, got 1"),
        ("--batch-sizes 17 --samplings shuffled", "--batch-sizes must be at most 16 without replacement, got 17"),
        ("--export /proc/nothing/page.html", "--export must be a file in a folder that can be written, got /proc/no"),
        ("--export .", "--export must be a file in a folder that can be written, got ."),
    ],
)
def test_wrong_words_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("explore", QUICK, words) == USAGE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"sgdsde: error: {message}")


def test_a_taken_port_is_said(server: Server, monkeypatch, capsys) -> None:
    listening = server.listen()
    try:
        assert call("explore", QUICK, f"--port {listening.port}") == USAGE
        assert f"--port must be a free port, got {listening.port}" in capsys.readouterr().err
    finally:
        listening.unlisten()


def test_without_bokeh_the_remedy_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(exploration.importlib.util, "find_spec", lambda name: None)
    assert call("explore", QUICK) == USAGE
    assert capsys.readouterr().err == (
        "sgdsde: error: explore needs bokeh; install it with: pip install 'sgdsde[explore]'\n"
    )


def test_nothing_imports_bokeh_before_it_is_asked_for() -> None:
    code = "import sys, sgdsde, sgdsde.explorer, sgdsde.cli.exploration; assert 'bokeh' not in sys.modules"
    answer = call_python("-c", code)
    assert answer.returncode == 0, answer.stderr


def test_quantiles_past_float32_never_reach_a_page(server: Server) -> None:
    assert np.isfinite(server.curves.losses).all()
