"""The command ``explore``: a page whose sliders move the predicted losses."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import itertools
import os
from pathlib import Path
from typing import Any

import sgdsde
from sgdsde._checks import complaint, fraction_below_one, whole_number
from sgdsde.cli.builders import build_problem, build_sgd, parse_lr, resolve_lr
from sgdsde.cli.costs import exploration_cost
from sgdsde.cli.options import Explore
from sgdsde.cli.results import ResultFolder
from sgdsde.cli.work import Work, default_name, facts_of, say_cost, say_written
from sgdsde.explorer import Curves, Server, export_page, loopback_address, predicted_curves
from sgdsde.explorer.curves import strides
from sgdsde.run_folder import write_manifest

NAMES = ("explorer.html",)


def explore(command: Explore, argv: list[str]) -> dict[str, Any]:
    """Predict a grid of settings, and serve the page of them, or write it."""
    if importlib.util.find_spec("bokeh") is None:
        raise ModuleNotFoundError("explore needs bokeh; install it with: pip install 'sgdsde[explore]'")
    asked, work = Asked.of(command), Work(command.compute.quiet)
    folder = ResultFolder.prepared(command.output, default_name("explore", command), NAMES) if asked.is_stored else None
    problem = build_problem(command.data, command.network, command.compute, command.training.loss)
    if command.output.dry_run:
        return say_cost("explore", asked.cost(problem))
    linearization = work.stage("kernel", lambda bar: sgdsde.linearize(problem, progress=bar))
    lr, words = resolve_lr(parse_lr(command.training), command.training, linearization)
    print(problem)
    print(f"the sliders start at {words}, batch size {command.training.batch_size}", flush=True)
    start = build_sgd(command.training, lr)
    curves: Curves = work.stage(
        "curves",
        lambda bar: predicted_curves(
            linearization, start, asked.n_steps, n_rates=asked.n_rates, progress=bar, **asked.grid
        ),
    )
    about = (
        f"{html.escape(repr(problem))}<br>Every curve is predicted, for the network linearized at its initial weights; "
        f"{len(curves.sgds)} settings, {asked.n_steps} steps."
    )
    facts = facts_of("explore", command, argv, lr) | {"n_settings": len(curves.sgds), "wall_time_s": work.seconds}
    facts |= {"problem": repr(problem), "problem_digest": problem.digest}
    if asked.export is not None:
        export_page(curves, asked.export, about=about, start=start)
        print(f"written to {asked.export}")
        facts["page"] = str(asked.export)
    if folder is not None:
        with folder.writing() as target:
            export_page(curves, target / NAMES[0], about=about, start=start)
            manifest = write_manifest(target, NAMES, facts)
        return say_written(folder.path, manifest)
    if asked.export is None:
        _serve(Server(curves, problem, about, start, command.runs, command.compute.seed), command)
    return facts


@dataclasses.dataclass(frozen=True)
class Asked:
    """The options, checked."""

    n_steps: int
    n_rates: int
    grid: dict[str, Any]
    first: sgdsde.SGD
    export: Path | None
    is_stored: bool

    @classmethod
    def of(cls, command: Explore) -> Asked:
        training = command.training
        n_steps = whole_number("--steps", training.steps, minimum=1)
        n_rates = whole_number("--rates", command.rates, minimum=2)
        whole_number("--runs", command.runs, minimum=2)
        if not 0 <= command.port < 2**16:
            raise ValueError(complaint("--port", "between 0 and 65535", command.port))
        if training.loss != "mse":
            raise ValueError(complaint("--loss", "mse for explore", training.loss))
        loopback_address(command.address)
        parse_lr(training)
        build_sgd(training)
        for name in ("momenta", "samplings"):
            if not getattr(command, name):
                raise ValueError(complaint(f"--{name}", "one value at least", "none"))
        momenta = tuple(fraction_below_one("--momenta", value) for value in (training.momentum, *command.momenta))
        samplings = tuple(dict.fromkeys((training.sampling, *command.samplings)))
        sizes = tuple(whole_number("--batch-sizes", size, minimum=1) for size in command.batch_sizes)
        sizes = sizes or tuple(2**k for k in range(12) if 2**k <= max(command.data.n_train // 2, 1))
        if max(sizes) > command.data.n_train and set(samplings) != {"with_replacement"}:
            expected = f"at most {command.data.n_train} without replacement"
            raise ValueError(complaint("--batch-sizes", expected, max(sizes)))
        first = build_sgd(dataclasses.replace(training, momentum=0.0, nesterov=False, dampening=0.0))
        grid = {"batch_sizes": sizes, "momenta": tuple(dict.fromkeys(momenta)), "samplings": samplings}
        export = None if command.export == "none" else Path(os.path.expanduser(command.export))
        is_stored = command.output.out != "auto"
        if export is not None:
            _check_file(export, command.output.overwrite)
        if command.output.json and export is None and not is_stored and not command.output.dry_run:
            raise ValueError(complaint("--json", "given with --export, --out or --dry-run", "a page to serve"))
        return cls(n_steps, n_rates, grid, first, export, is_stored)

    def cost(self, problem: sgdsde.Problem) -> Any:
        sizes = self.grid["batch_sizes"]
        groups = list(itertools.product(self.grid["momenta"], self.grid["samplings"]))
        coarse = []
        for momentum, sampling in groups:
            if momentum or sampling == "shuffled":
                every = strides(momentum, sampling, self.n_rates)
                one = dataclasses.replace(self.first, momentum=momentum, sampling=sampling)
                coarse += [one] * (len(sizes[:: every[0]]) * -(-self.n_rates // every[1]))
        return exploration_cost(problem, self.first, coarse, len(groups) * len(sizes), self.n_steps)


def _check_file(path: Path, overwrite: bool) -> None:
    """Raises for a page that could not be written, before anything is computed."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(complaint("--export", "a file in a folder that can be written", path))
    if path.exists() and not overwrite:
        raise FileExistsError(complaint("--export", "a new file", f"{path}, which is there", "add --overwrite"))


def _serve(server: Server, command: Explore) -> None:
    """Serve until interrupted, which is how it is meant to end."""
    try:
        listening = server.listen(command.address, command.port)
    except OSError as error:
        raise OSError(
            complaint("--port", "a free port", f"{command.port} ({error.strerror})", "use --port 0")
        ) from None
    listening.start()
    print(f"{server.url(listening)} (this machine only; ends with Ctrl-C)", flush=True)
    listening.run_until_shutdown()
