"""Readers of what a torch training script already has: optimizer, scheduler, loaders."""

from sgdsde.adapters.examples import examples_of_loaders
from sgdsde.adapters.optimizer import TrainedTensors, words_of_optimizer
from sgdsde.adapters.sampler import LoaderSampling, sampling_of_loader
from sgdsde.adapters.scheduler import ScheduledRate, SchedulerInterval, lr_of_scheduler

__all__ = [
    "LoaderSampling",
    "ScheduledRate",
    "SchedulerInterval",
    "TrainedTensors",
    "examples_of_loaders",
    "lr_of_scheduler",
    "sampling_of_loader",
    "words_of_optimizer",
]
