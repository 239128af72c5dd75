"""Weights in memory of the server's own, ready for inference.

Knows torch's modules; knows no file and no format.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Final, TypeVar

import torch
from torch.nn.utils import parametrize

from align_server.engines.pages import release

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALIGNED: Final = 64  # bytes in a cache line

Model = TypeVar("Model", bound=torch.nn.Module)


def ready(model: Model, head: str, dtype: torch.dtype) -> Model:
    """A model for inference in memory of its own, in `dtype` but for its last layer, named `head`, which is in fp32."""
    last = model.get_submodule(head)
    settle([part for part in model.children() if part is not last], dtype)
    settle([last])
    return model.eval()


def adapted(model: Model, tensors: Mapping[str, torch.Tensor]) -> Model:
    """A model with other weights of those names, each on the device and of the type of the one that it replaces.

    All others it shares with `model`, which stays as it is, so that each can compute while the other does.
    """
    shared = {id(weight): weight for weight in itertools.chain(model.parameters(), model.buffers())}
    other = copy.deepcopy(model, shared)
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        weight = torch.nn.Parameter(tensor.to(model.get_parameter(name)), requires_grad=False)
        setattr(other.get_submodule(owner), last, weight)
    return other


def settle(modules: Sequence[torch.nn.Module], dtype: torch.dtype = torch.float32) -> None:
    """Make modules ready for inference: in one piece of memory, as `dtype`, with each normalised weight computed once.

    What loaders give is a map of the file: it would change under the server, or end it with SIGBUS, where the file is
    written again in its place. Nothing is in memory twice: the map's pages go as they are read.
    """
    for part in [part for module in modules for part in module.modules()]:
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]  # a ModuleDict, as is_parametrized says
                parametrize.remove_parametrizations(part, name)
    for module in modules:
        module.eval().requires_grad_(requires_grad=False)  # no earlier: of what has no gradient torch makes buffers
    # In one piece, which goes back to the system as a whole; many small ones would stay with malloc.
    weights = [weight for module in modules for weight in module.parameters()]
    step = ALIGNED // dtype.itemsize
    memory = torch.empty(sum(-(-weight.numel() // step) * step for weight in weights), dtype=dtype)
    start = 0
    for weight in weights:
        given = weight.data
        weight.data = memory[start : start + weight.numel()].view(weight.shape).copy_(given)
        release(given)
        start += -(-weight.numel() // step) * step
    for buffer in (buffer for module in modules for buffer in module.buffers()):
        buffer.data = buffer.data.clone()
