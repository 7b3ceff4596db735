"""The recipe of torch.func's own tutorial, with the Jacobian of equal inputs made once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix
from benchmarks.ntk.torch_models import torch_case


def prepare(case: Case) -> Prepared:
    model, x = torch_case(case)
    params = {name: value.detach() for name, value in model.named_parameters()}
    equation = "iaf,jbf->iajb" if case.outputs == "full" else "iaf,jaf->ij"

    def output(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, values, (example[None],))[0]

    def call() -> Tensor:
        jacobians = vmap(jacrev(output), (None, 0))(params, x)
        flat = [value.flatten(2) for value in jacobians.values()]
        return sum(torch.einsum(equation, value, value) for value in flat)  # type: ignore[return-value]

    return call, matrix
