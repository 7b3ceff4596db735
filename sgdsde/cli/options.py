"""Every option of the command line: its type, its default and its line of help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import arg

from sgdsde._types import Parametrization, Sampling

LossWord = Literal["mse", "ce", "logistic", "huber"]


@dataclass(frozen=True)
class DataOptions:
    """what is learned"""

    data: Literal["digits", "mnist", "cifar10", "synthetic"] = "digits"
    """Data set; digits ships with scikit-learn, mnist and cifar10 are looked for in $SGDSDE_DATA."""
    n_train: int = 256
    """Training examples."""
    n_test: int = 128
    """Test examples."""
    target: Literal["auto", "sign", "onehot", "class"] = "auto"
    """Targets of the network: +1/-1, ten numbers, or the class; auto is class for ce and sign for the others."""
    image_size: int = 0
    """Average images down to this size; 0 leaves them as they are."""
    in_features: int = 32
    """Features of an example, for synthetic data only."""


@dataclass(frozen=True)
class NetworkOptions:
    """what learns it"""

    network: Literal["mlp", "cnn", "resnet"] = "mlp"
    """Kind of network; resnet is fully connected."""
    width: int = 512
    """Neurons, or channels, of every hidden layer; predictions get better as it grows."""
    depth: int = 1
    """Hidden layers."""
    activation: Annotated[str, arg(metavar="NAME")] = "relu"
    """Activation: relu, tanh, erf, gelu, ..."""
    parametrization: Parametrization = "ntk"
    """Whether the scale of a layer stands in front of its weights or inside them."""
    sigma_w: float = 2**0.5
    """Standard deviation of the weights, times sqrt(fan_in)."""
    sigma_b: float = 0.0
    """Standard deviation of the biases; 0 leaves them out."""


@dataclass(frozen=True)
class TrainingOptions:
    """how it is trained: torch.optim.SGD"""

    lr: Annotated[str, arg(metavar="LR")] = "half"
    """Learning rate: a number, or half or 0.8x for that part of the largest stable one."""
    batch_size: int = 8
    """Examples a step."""
    steps: int = 400
    """Updates."""
    momentum: float = 0.0
    """Momentum."""
    dampening: float = 0.0
    """Dampening of the momentum."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: float = 0.0
    """Weight decay."""
    sampling: Sampling = "with_replacement"
    """How batches are drawn; shuffled means epochs, as a DataLoader makes them."""
    drop_last: bool = False
    """Skip the smaller last batch of an epoch (shuffled only)."""
    label_noise_std: float = 0.0
    """Fresh Gaussian noise on the targets of every batch."""
    loss: LossWord = "mse"
    """Loss: nn.MSELoss, nn.CrossEntropyLoss, nn.SoftMarginLoss (logistic) or nn.HuberLoss."""


@dataclass(frozen=True)
class ComputeOptions:
    """where and how it is computed"""

    seed: int = 0
    """Decides examples, initial weights and batches."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number format of the network; the theory is computed in float64."""
    device: Annotated[str, arg(metavar="DEVICE")] = "cpu"
    """Device of torch: cpu, cuda, cuda:1, ..."""
    quiet: bool = False
    """Show no progress bars."""


@dataclass(frozen=True)
class OutputOptions:
    """what is written"""

    out: Annotated[str, arg(metavar="DIR")] = "auto"
    """Folder for the results; auto names it after the settings (eoc then writes none)."""
    overwrite: bool = False
    """Replace results that are there."""
    json: bool = False
    """Print one JSON object in place of words."""
    dry_run: bool = False
    """Print what it would cost (seconds, memory, plain training runs), and compute and write nothing."""
    config: Annotated[str, arg(metavar="FILE")] = "none"
    """Options of a TOML file, or of a run: its manifest.json or its folder. Those typed here go before them."""


@dataclass(frozen=True)
class DynamicsOptions:
    """the theory"""

    dynamics: Annotated[str, arg(metavar="NAME")] = "auto"
    """Predictor of sgdsde.dynamics, such as MomentRecursion or "OrnsteinUhlenbeck(freeze='init')"."""


@dataclass(frozen=True)
class Predict:
    """Predict the loss curve of SGD without training."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    theory: DynamicsOptions = field(default_factory=DynamicsOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True)
class Compare:
    """Predict the loss curve of SGD, train many times, and compare."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    theory: DynamicsOptions = field(default_factory=DynamicsOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    runs: int = 64
    """Training runs to compare with."""


@dataclass(frozen=True)
class Diagnose:
    """Advise before training which prediction to trust, with the error to expect."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    tolerance: float = 0.05
    """Relative error of the training loss that is asked for."""


@dataclass(frozen=True)
class Sweep:
    """Predict the last loss over learning rates and batch sizes, without training."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    theory: DynamicsOptions = field(default_factory=DynamicsOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    lrs: Annotated[tuple[str, ...], arg(metavar="LR [LR ...]")] = ("0.1x", "0.2x", "0.4x", "0.8x")
    """Learning rates in place of --lr; 0.4x is a part of the largest stable one of each batch size."""
    batch_sizes: Annotated[tuple[int, ...], arg(metavar="B [B ...]")] = (1, 2, 4, 8, 16, 32)
    """Batch sizes in place of --batch-size."""


@dataclass(frozen=True)
class Ntk:
    """Compute the neural tangent kernel, its spectrum and the largest stable learning rates."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    batch_size: int = 8
    """Batch size of the stable learning rates."""
    sampling: Literal["with_replacement", "without_replacement"] = "with_replacement"
    """How these batches are drawn."""
    loss: LossWord = "mse"
    """Loss; the learning rates of others than mse are those of its quadratic at the initial outputs."""
    top: int = 10
    """Eigenvalues to print."""


CriterionWord = Literal["random", "magnitude", "snip", "grasp", "synflow", "synflow2", "pathkernel"]


@dataclass(frozen=True)
class Prune:
    """Prune at initialization, and rank the masks by the loss that they are predicted to reach."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    criteria: tuple[CriterionWord, ...] = ("random", "snip", "synflow")
    """Criteria; synflow2 sums squares over paths, pathkernel keeps the trace of the path kernel."""
    sparsities: Annotated[tuple[float, ...], arg(metavar="S [S ...]")] = (0.9,)
    """Shares of the weights to remove."""
    rounds: int = 0
    """Rounds of scoring and removing; 0 is what each criterion prefers (100 for synflow, 1 for most)."""
    scope: Literal["global", "layer"] = "global"
    """Whether scores compete over the whole network or within each layer."""
    rescale: Literal["none", "neuron", "layer", "data"] = "none"
    """Bring the pruned networks back to the edge of chaos first."""


@dataclass(frozen=True)
class Eoc:
    """Print the initialization on the edge of chaos, where signals reach the deepest layers."""

    activation: Annotated[str, arg(metavar="NAME")] = "tanh"
    """Activation: relu, tanh, erf, gelu, ..."""
    sigma_b: float = 0.1
    """Standard deviation of the biases."""
    output: OutputOptions = field(default_factory=OutputOptions)


@dataclass(frozen=True)
class Explore:
    """Open a local page whose sliders move the predicted losses; or write it as one file."""

    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    batch_sizes: Annotated[tuple[int, ...], arg(metavar="B [B ...]")] = ()
    """Batch sizes of the slider, which starts near --batch-size; none are powers of two up to half of the examples."""
    momenta: Annotated[tuple[float, ...], arg(metavar="M [M ...]")] = (0.0, 0.9)
    """Momenta beside --momentum; those above 0 take longer, on a coarser grid."""
    samplings: tuple[Sampling, ...] = ("with_replacement", "without_replacement")
    """How batches are drawn, beside --sampling; shuffled takes longer, on a coarser grid."""
    rates: int = 28
    """Learning rates of the slider."""
    export: Annotated[str, arg(metavar="FILE")] = "none"
    """Write the page to this file, which needs neither Python nor a network, and end."""
    runs: int = 32
    """Training runs of the button that measures."""
    address: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address of the page, of this machine only."""
    port: int = 5006
    """Port of the page; 0 is any free one."""


Command = Predict | Compare | Diagnose | Sweep | Ntk | Prune | Eoc | Explore
