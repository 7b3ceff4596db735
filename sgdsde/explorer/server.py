"""The page served to this machine alone, with a button that trains for real."""

from __future__ import annotations

import ipaddress
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdsde._checks import complaint
from sgdsde.ensemble import run_ensemble
from sgdsde.explorer.curves import PARTS, PAST_LIMIT, Curves, loss_curves
from sgdsde.explorer.page import TITLE, WORDS, Page, key_of, page, written
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.server.server import Server as BokehServer


def loopback_address(address: str) -> str:
    """The address, if it is one of this machine that no other machine can reach.

    Raises:
        ValueError: another address, or a name; a page that trains on request is not for a network.
    """
    try:
        found = ipaddress.ip_address("127.0.0.1" if address == "localhost" else address)
        if found.is_loopback:
            return str(found)
    except ValueError:
        pass
    remedy = "use 127.0.0.1, and a tunnel of ssh from elsewhere"
    raise ValueError(complaint("address", "a loopback address", address or "none", remedy))


@dataclass(frozen=True, eq=False)
class Server:
    """A server of one page.

    Args:
        problem: trained on request. n_runs, seed: of these runs.
    """

    curves: Curves
    problem: Problem
    about: str
    start: SGD
    n_runs: int = 32
    seed: int = 0

    def listen(self, address: str = "127.0.0.1", port: int = 0) -> BokehServer:
        """A server that listens; ``.run_until_shutdown()`` serves; port 0 is any free one. See ``url``.

        Raises:
            ValueError: an address that is not loopback. OSError: a port that is taken. ModuleNotFoundError: no bokeh.
        """
        host = loopback_address(address)
        from bokeh.application import Application
        from bokeh.application.handlers.function import FunctionHandler
        from bokeh.server.server import Server as BokehServer

        application = Application(FunctionHandler(self._open))
        port = port or _free_port(host)
        origins = [f"{_bracketed(host)}:{port}", f"localhost:{port}"]
        return BokehServer({"/": application}, address=host, port=port, allow_websocket_origin=origins)

    @staticmethod
    def url(listening: BokehServer) -> str:
        """Where a browser finds the page."""
        return f"http://{_bracketed(str(listening.address))}:{listening.port}/"

    def _open(self, document: Document) -> None:
        """A page for one browser."""
        made = page(self.curves, about=self.about, start=self.start, measure=f"measure: train {self.n_runs} times here")
        made.button.on_click(lambda _: self._asked(document, made))  # before it joins the document, which asks then
        document.add_root(made.layout)
        document.title = TITLE
        document.on_event("document_ready", lambda _: setattr(made.layout, "tags", ["drawn"]))

    def _asked(self, document: Document, made: Page) -> None:
        sgd = self.shown(made.controls)
        if sgd is None:
            made.status.text = "Nothing is trained outside the stable range."
            return
        made.button.disabled = True
        made.status.text = f"Training {self.n_runs} times ..."

        def work() -> None:
            try:
                columns = self.measured(sgd)
            except Exception as error:
                said = f"Not measured: {error}"
                document.add_next_tick_callback(lambda: self._shown(made, said, None, ""))
                return
            said = (
                f"Measured: {self.n_runs} runs of the network at lr = {written(sgd.lr_at(0))}, batch size "
                f"{sgd.batch_size}, momentum {sgd.momentum:g}, {WORDS[sgd.sampling]}; mean and 10 to 90 % of runs."
            )
            document.add_next_tick_callback(lambda: self._shown(made, said, columns, key_of(sgd)))

        threading.Thread(target=work, daemon=True).start()

    @staticmethod
    def _shown(made: Page, said: str, columns: list[dict[str, Any]] | None, key: str) -> None:
        made.status.text, made.button.disabled = said, False
        for source, data in zip(made.measured, columns or []):
            source.data = data
            source.tags = [key]

    def shown(self, controls: dict[str, Any]) -> SGD | None:
        """The setting whose curve the controls show; None outside the stable range."""
        rates, sizes = controls["lr"].categories, controls["batch"].categories
        place = (controls["momentum"].active, controls["sampling"].active, sizes.index(controls["batch"].value))
        row = int(self.curves.nearest[(*place, rates.index(controls["lr"].value))])
        return None if row == PAST_LIMIT else self.curves.sgds[row]

    def measured(self, sgd: SGD) -> list[dict[str, np.ndarray]]:
        """The columns of the measured losses, a side each."""
        record = self.curves.steps.tolist()
        found = run_ensemble(self.problem, sgd, self.curves.n_steps, self.n_runs, seed=self.seed, record=record)
        seen = self.curves.steps >= 1
        steps = self.curves.steps[seen].astype(np.int32)
        return [{"step": steps, **dict(zip(PARTS, side[:, seen]))} for side in loss_curves(found)]


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
