"""One result type, the same for predicted and measured training."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sgdsde._checks import complaint, fraction
from sgdsde._files import replacing

if TYPE_CHECKING:
    import pandas
    import xarray

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class LossBand:
    """A loss at T recorded steps: mean and spread over runs.

    Attributes:
        mean: [T]; +inf once a run has diverged.
        std: [T], over runs, ddof 1 where measured; 0 for deterministic dynamics.
        standard_error: [T], of ``mean``; 0 where the mean is no sample mean.
        samples: [n_runs, T], or None for a moment predictor.
    """

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> LossBand:
        """The band of measured losses [n_runs, T]; NaN counts as diverged, +inf."""
        samples = torch.where(torch.isfinite(samples), samples, torch.inf).double().cpu()
        runs = samples.shape[0]
        std = _spread(samples)
        std = torch.where(torch.isfinite(samples).all(0), std, torch.inf)
        return cls(samples.mean(0), std, std / runs**0.5, samples)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile over runs at each step, [T].

        Of samples: exact, finite as long as enough runs are. Of a moment predictor: APPROXIMATE, the Gamma law with
        the band's mean and standard deviation (a sum of squares is never negative and skewed to the right); see
        ``has_samples``.
        """
        q = fraction("q", q)
        if self.samples is not None:
            return _sample_quantile(self.samples, q)
        mean, std = self.mean.numpy(), self.std.numpy()
        spread = np.isfinite(mean) & np.isfinite(std) & (std > 0) & (mean > 0)
        shape = np.where(spread, mean, 1.0) ** 2 / np.where(spread, std, 1.0) ** 2
        gamma = stats.gamma.ppf(q, shape, scale=np.where(spread, mean, 1.0) / shape)
        return torch.from_numpy(np.where(spread, gamma, mean))

    @property
    def has_samples(self) -> bool:
        """Whether quantiles are those of samples rather than of a matched Gamma law."""
        return self.samples is not None


@dataclass(frozen=True, eq=False)
class AccuracyBand:
    """The fraction of examples on the right side (sign or argmax) at T recorded steps: mean and spread over runs.

    Attributes:
        mean, std, standard_error: [T], as in ``LossBand``. samples: [n_runs, T], or None for a moment predictor.
    """

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> AccuracyBand:
        """The band of measured accuracies [n_runs, T]."""
        samples = samples.double().cpu()
        std = _spread(samples)
        return cls(samples.mean(0), std, std / len(samples) ** 0.5, samples)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile over runs, [T]; of a moment predictor APPROXIMATE, by a Beta law with the same two moments."""
        q = fraction("q", q)
        if self.samples is not None:
            return _sample_quantile(self.samples, q)
        mean, std = self.mean.numpy(), self.std.numpy()
        spread = (std > 0) & (mean > 0) & (mean < 1) & (std**2 < mean * (1 - mean))
        safe_mean, safe_std = np.where(spread, mean, 0.5), np.where(spread, std, 0.1)
        weight = safe_mean * (1 - safe_mean) / safe_std**2 - 1
        beta = stats.beta.ppf(q, safe_mean * weight, (1 - safe_mean) * weight)
        return torch.from_numpy(np.where(spread, beta, mean))


@dataclass(frozen=True, eq=False)
class OutputBand:
    """Outputs at T recorded steps: mean and std [T, n, c] over runs, samples [n_runs, T, n, c] or None."""

    mean: Tensor
    std: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> OutputBand:
        """The band of measured outputs [n_runs, T, n, c]."""
        samples = samples.double().cpu()
        return cls(samples.mean(0), _spread(samples), samples)


def _sample_quantile(samples: Tensor, q: float) -> Tensor:
    return torch.from_numpy(np.quantile(samples.numpy(), q, axis=0, method="inverted_cdf"))


def _spread(samples: Tensor) -> Tensor:
    """Standard deviation over the first dimension, ddof 1; exactly 0 where all samples are equal."""
    if len(samples) < 2:
        return torch.full_like(samples[0], torch.nan)
    return (samples - samples[0]).std(0, correction=1)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Training as recorded at T steps. All tensors are float64 on the CPU, steps int64.

    Attributes:
        steps: [T]. times: [T], the sum of the learning rates of the steps before.
        train_loss, test_loss: ``LossBand``; test_loss is None without a test set.
        train_outputs, test_outputs: ``OutputBand`` if observed, else None.
        n_runs: runs or paths behind the bands; 0 for a moment predictor.
        dynamics: what made it, in words.
        problem_digest: of the problem it belongs to.
        diverged_at: int64 [n_runs], first step whose loss is not finite; n_steps + 1 = never.
        mean_square_limit: the largest stable learning rate of the linearized SGD in mean square, where the learning
            rate lies past it; else None.
        train_accuracy, test_accuracy: ``AccuracyBand`` if observed, else None.
        truncation_error: [T], a bound on |expected train loss on the whole kernel - train_loss.mean| of a prediction
            on its leading eigenpairs; None where nothing was left out. Test losses have no such bound.
        estimated_error: [T], estimated relative error of train_loss.mean against the theory that ``dynamics`` stands
            for, where it was not computed exactly (``ReducedMoments``); else None.
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

    @property
    def is_past_limit(self) -> bool:
        """Whether this predicts training beyond the mean-square limit, where no finite number is to be believed."""
        return self.mean_square_limit is not None

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
        attributes = {key: value for key, value in self._header().items() if value is not None}
        return xarray.Dataset(data, coords=coordinates, attrs=attributes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one ``.npz`` (arrays, a JSON header, no pickle) to a temporary file and renames it: all or nothing."""
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
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "header"}
            version = header.pop("format_version", None) if isinstance(header, dict) else None
            if version == FORMAT_VERSION:
                if header.pop("arrays") != sorted(arrays):
                    raise KeyError("an array is missing, or one too many")
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
        return cls(steps=arrays["steps"], times=arrays["times"], diverged_at=arrays["diverged_at"], **bands, **header)


_ERRORS = ("truncation_error", "estimated_error")
_BAND_PARTS = ("mean", "std", "standard_error", "samples")
_PARTS = {"loss": _BAND_PARTS, "accuracy": _BAND_PARTS, "outputs": ("mean", "std", "samples")}
