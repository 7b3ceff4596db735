"""Result of training, predicted or measured, in one type."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from sgdsde import plots
from sgdsde._checks import complaint, word
from sgdsde._files import replacing
from sgdsde._result_file import check_contents, check_sizes
from sgdsde._types import Origin
from sgdsde._words import told
from sgdsde.bands import AccuracyBand, LossBand, OutputBand, draw_loss, label_bands

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes

FORMAT_VERSION = 1

_ROWS = 10
"""Steps of a printed table."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Training as recorded at T steps. All tensors are float64 on the CPU, steps int64.

    Attributes:
        steps: [T]. times: [T], the sum of the learning rates of the steps before.
        train_loss, test_loss: ``LossBand``; test_loss is None without a test set.
        train_outputs, test_outputs: ``OutputBand`` if observed, else None.
        n_runs: runs or paths behind the bands; 0 for moments in closed form.
        dynamics: what made it, in words.
        problem_digest: of the problem it belongs to.
        diverged_at: int64 [n_runs], first step whose loss is not finite; n_steps + 1 = never.
        mean_square_limit: the largest stable learning rate of the linearized SGD in mean square, where the learning
            rate lies past it; else None.
        train_accuracy, test_accuracy: ``AccuracyBand`` if observed, else None.
        truncation_error: [T], of a prediction on leading eigenpairs |expected train loss on the whole kernel -
            train_loss.mean|: an estimate where their tail is followed, a bound where it is frozen; None where nothing
            was left out. Test losses have none.
        estimated_error: [T], estimated relative error of train_loss.mean against the theory that ``dynamics`` stands
            for, where it was not computed exactly (``ReducedMoments``); else None.
        assumptions: what a prediction takes for granted of kernel, noise and closure, in words; empty where measured.
        origin: "predicted": no run of this setting was used. "interpolated": runs of other settings were. "measured":
            runs of this setting (of the network, or of the linearized model, as ``dynamics`` says). Default: the word
            that ``dynamics`` starts with, else "predicted".
        obtained: how ``measure``, ``answer`` or a surface came to it, in words; else empty.
        effort: numbers of that by name: what was done, reached and spent (``measure`` lists its own); else empty.
    """

    steps: Tensor
    times: Tensor
    train_loss: LossBand
    test_loss: LossBand | None
    train_outputs: OutputBand | None
    test_outputs: OutputBand | None
    n_runs: int
    dynamics: str
    problem_digest: str
    diverged_at: Tensor
    mean_square_limit: float | None = None
    train_accuracy: AccuracyBand | None = None
    test_accuracy: AccuracyBand | None = None
    truncation_error: Tensor | None = None
    estimated_error: Tensor | None = None
    assumptions: tuple[str, ...] = ()
    origin: Origin = ""  # type: ignore[assignment]
    obtained: str = ""
    effort: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words: tuple[Origin, ...] = get_args(Origin)
        said = next((each for each in words if self.dynamics.startswith(each)), None)
        if not self.origin:
            object.__setattr__(self, "origin", said or "predicted")
        word("origin", self.origin, words)
        if said not in (None, self.origin):
            received = f"{self.origin!r} with dynamics={self.dynamics!r}"
            raise ValueError(complaint("origin", f"what dynamics says, {said!r}", received))

    @property
    def losses(self) -> dict[str, LossBand]:
        """The loss bands that there are, by ``"train"`` and ``"test"``."""
        return {"train": self.train_loss} | ({"test": self.test_loss} if self.test_loss is not None else {})

    @property
    def is_past_limit(self) -> bool:
        """Whether the prediction lies past the mean-square limit, where no finite number can be trusted."""
        return self.mean_square_limit is not None

    def __str__(self) -> str:
        last, measured = int(self.steps[-1]), self.origin == "measured"
        parts, table = [], []
        for side, band in self.losses.items():
            first, mean, std = float(band.mean[0]), float(band.mean[-1]), float(band.std[-1])
            parts.append(f"{side} loss from {first:.4g} to {mean:.4g}, +- {std:.2g} from run to run")
        rows = torch.unique(torch.linspace(0, len(self.steps) - 1, _ROWS).round().long()).tolist()
        table.append(f"{'step':>8}" + "".join(f" {side + ' loss':>12} {'+-':>9}" for side in self.losses))
        for i in rows:
            cells = "".join(
                f" {float(band.mean[i]):>12.5g} {float(band.std[i]):>9.2g}" for band in self.losses.values()
            )
            table.append(f"{int(self.steps[i]):>8}{cells}")
        do = "compare with a prediction (compare)" if measured else "compare with a few runs (run_ensemble, compare)"
        return told(
            asked=f"how does the loss change over {last} steps? Origin: {self.origin}, by {self.dynamics}.",
            answer=f"{'; '.join(parts)}.",
            sure=self._sure(),
            do=f"{do}, or ask it: steps_to(trajectory, loss=...), spread_over_runs(trajectory).",
            table=table,
            terms=[self.origin, "run", *(["mean-square limit"] * self.is_past_limit)],
        )

    def _sure(self) -> str:
        """What the numbers rest on, in words."""
        if self.is_past_limit:
            return f"not to be believed: lr is past the mean-square limit {self.mean_square_limit:.4g}."
        parts = []
        if self.n_runs:
            diverged = int((self.diverged_at <= self.steps[-1]).sum())
            parts.append(
                f"means over {self.n_runs} runs or paths" + (f", {diverged} of them diverged" * bool(diverged))
            )
        if self.assumptions:
            parts.append(f"assumes that {'; '.join(self.assumptions)}")
        if self.estimated_error is not None:
            parts.append(f"estimated relative error of the mean {float(self.estimated_error.max()):.1g}")
        if self.truncation_error is not None:
            left_out = f"{float(self.truncation_error.max()):.2g}"
            parts.append(f"eigenpairs left out change it by an estimated {left_out} (a bound if frozen)")
        return "; ".join(parts) + "." if parts else "see the notes of its dynamics."

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The axes of a picture: mean losses with the 10 to 90 % bands of the runs.

        Args:
            path: where to save, in the format that the suffix names; whole or not at all. With None the figure belongs
                to pyplot, so that ``plt.show()`` shows it.
        Raises:
            ModuleNotFoundError: no matplotlib. ValueError: a suffix that matplotlib cannot write.
        """
        with plots.canvas(path, size=(6.4, 3.6)) as figure:
            axes = figure.subplots()
            for side, band in self.losses.items():
                draw_loss(axes, self.steps, band, self.origin, side)
            plots.scale_losses(axes)
            plots.scale_steps(axes, int(self.steps[-1]))
            plots.title(axes, self.obtained or self.dynamics)
            label_bands(axes, self.train_loss, self.origin)
        return axes

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a recorded step: step, time, and mean, std, standard_error of each band (needs pandas)."""
        import pandas

        columns: dict[str, Any] = {"step": self.steps.numpy(), "time": self.times.numpy()}
        for name, band in self._bands().items():
            for part in ("mean", "std", "standard_error"):
                columns[f"{name}_{part}"] = getattr(band, part).numpy()
        for name, values in self._errors().items():
            columns[name] = values.numpy()
        return pandas.DataFrame(columns)

    def to_xarray(self) -> xarray.Dataset:
        """Every array with named dimensions step, run, example, output (needs xarray)."""
        import xarray

        data: dict[str, Any] = {"diverged_at": ("run", self.diverged_at.numpy())}
        for name, array in self._arrays().items():
            if name in ("steps", "times", "diverged_at"):
                continue
            if name in _ERRORS:
                data[name] = ("step", array)
                continue
            side, what, part = name.split(".")
            dims: tuple[str, ...] = ("step", f"{side}_example", "output") if what == "outputs" else ("step",)
            data[name.replace(".", "_")] = (("run", *dims) if part == "samples" else dims, array)
        coordinates = {"step": self.steps.numpy(), "time": ("step", self.times.numpy())}
        attributes = {key: value for key, value in self._header().items() if value is not None and key != "effort"}
        attributes |= {f"effort_{key}": value for key, value in self.effort.items()}
        return xarray.Dataset(data, coords=coordinates, attrs=attributes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` (arrays, a JSON header, no pickle) to a temporary file and renames it: all or nothing."""
        arrays = self._arrays()
        described = json.dumps(self._header() | {"arrays": sorted(arrays)}).encode()
        header = np.frombuffer(described, dtype=np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{"header": header, **arrays})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """The trajectory that ``save`` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: a file that is cut, damaged, foreign, or of a newer format.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(complaint("path", "a path", repr(path)))
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                check_sizes(file)
                header = json.loads(file["header"].tobytes())
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "header"}
            version = header.pop("format_version", None) if isinstance(header, dict) else None
            if version == FORMAT_VERSION:
                if header.pop("arrays") != sorted(arrays):
                    raise KeyError("an array is missing, or one too many")
                check_contents(arrays, header)
                return cls._from_arrays(arrays, header)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # a damaged archive fails in a dozen ways, zlib.error and NotImplementedError too
            expected, received = "a complete file written by Trajectory.save", f"{type(error).__name__}: {error}"
            raise ValueError(complaint(str(path), expected, received, "run again and save again")) from error
        expected, received = f"of format version {FORMAT_VERSION}", f"format version {version}"
        raise ValueError(complaint(str(path), expected, received, "update sgdsde"))

    def _header(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "n_runs": self.n_runs,
            "dynamics": self.dynamics,
            "problem_digest": self.problem_digest,
            "mean_square_limit": self.mean_square_limit,
            "assumptions": list(self.assumptions),
            "origin": self.origin,
            "obtained": self.obtained,
            "effort": dict(self.effort),
        }

    def _errors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in _ERRORS if getattr(self, name) is not None}

    def _bands(self) -> dict[str, LossBand | AccuracyBand]:
        names = [f"{side}_{what}" for what in ("loss", "accuracy") for side in ("train", "test")]
        bands = {name: getattr(self, name) for name in names}
        return {name: band for name, band in bands.items() if band is not None}

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"steps": self.steps, "times": self.times, "diverged_at": self.diverged_at}
        arrays |= self._errors()
        for side in ("train", "test"):
            for what, parts in _PARTS.items():
                band = getattr(self, f"{side}_{what}")
                for part in parts:
                    if band is not None and getattr(band, part) is not None:
                        arrays[f"{side}.{what}.{part}"] = getattr(band, part)
        return {name: value.numpy() for name, value in arrays.items()}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Tensor], header: dict[str, Any]) -> Trajectory:
        kinds: dict[str, type] = {"loss": LossBand, "accuracy": AccuracyBand, "outputs": OutputBand}
        bands: dict[str, Any] = {}
        for side in ("train", "test"):
            for what, parts in _PARTS.items():
                found = {part: arrays.get(f"{side}.{what}.{part}") for part in parts}
                bands[f"{side}_{what}"] = None if found["mean"] is None else kinds[what](**found)
        bands |= {name: arrays.get(name) for name in _ERRORS}
        header["assumptions"] = tuple(header.get("assumptions", ()))
        return cls(steps=arrays["steps"], times=arrays["times"], diverged_at=arrays["diverged_at"], **bands, **header)


_ERRORS = ("truncation_error", "estimated_error")
_BAND_PARTS = ("mean", "std", "standard_error", "samples")
_PARTS = {"loss": _BAND_PARTS, "accuracy": _BAND_PARTS, "outputs": ("mean", "std", "samples")}
