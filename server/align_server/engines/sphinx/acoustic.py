"""Log likelihoods of frames under the model's senones: Gaussian mixtures with a codebook for each phone.

Knows the Gaussians and weights, and nothing of words or search. Works on one utterance at a time, so that a
score cannot depend on what else is in a batch; each step is a few large operations that release the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from align_server.engines.sphinx.model import AcousticModel

_SMALLEST: Final = -80.0  # nats below a codebook's best density; further down exp() would be slow and add nothing
_CHUNK: Final = 512  # frames scored at a time, which bounds the memory of the densities


class SenoneScorer:
    """Scores frames against senones. Immutable after construction, so any number of threads may share one."""

    def __init__(self, model: AcousticModel, device: torch.device) -> None:
        precision = 1 / model.variances.astype(np.float64)
        means = model.means.astype(np.float64)
        size = model.means.shape[-1]
        constant = -0.5 * ((means**2 * precision) - np.log(precision)).sum(-1, keepdims=True) - size / 2 * np.log(
            2 * np.pi
        )
        terms = np.concatenate([-0.5 * precision, means * precision, constant], -1)  # of x squared, x and 1
        self._terms = torch.from_numpy(terms.astype(np.float32)).transpose(0, 1).contiguous().to(device)
        self._weights = torch.from_numpy(model.weights).to(device)
        self._base = model.phones.base
        self._device = device
        self._streams, self._size = model.means.shape[1], size

    def __call__(self, features: torch.Tensor, senones: npt.NDArray[np.int64]) -> torch.Tensor:
        """Log likelihoods, shape [frames, senones]. `senones` is ascending within each phone, phones in any order.

        The mixture is summed in full. The product over streams is taken before the logarithm: with the best density
        of each codebook scaled to one, no stream's sum is below the smallest weight, e-26, so three fit a float32.
        """
        order, books, columns, width = self._layout(senones)
        x = features.to(self._device).view(len(features), self._streams, self._size)
        terms = torch.cat([x.square(), x, torch.ones_like(x[..., :1])], dim=-1).transpose(0, 1)
        weights = self._weights[:, order].view(self._streams, len(books), width, -1)
        chosen = self._terms[:, books]
        out = torch.empty(len(features), len(senones), device=self._device)
        for start in range(0, len(features), _CHUNK):
            piece = terms[:, start : start + _CHUNK]
            out[start : start + _CHUNK] = _mixtures(piece, chosen, weights)[:, columns]
        return out

    def _layout(self, senones: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Senones by codebook, padded to equal numbers: their order, the codebooks, each senone's column, the width."""
        books, first, group, count = np.unique(
            self._base[senones], return_index=True, return_inverse=True, return_counts=True
        )
        width = int(count.max())
        place = np.argsort(np.argsort(group, kind="stable"), kind="stable") - (np.cumsum(count) - count)[group]
        columns = group * width + place
        order = np.repeat(senones[first], width)
        order[columns] = senones
        wanted, chosen, found = (torch.from_numpy(a).to(self._device) for a in (order, books.astype(np.int64), columns))
        return wanted, chosen, found, width


def _mixtures(terms: torch.Tensor, books: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Log mixtures, [frames, books * width], of terms [streams, frames, 27]; books are [streams, books, densities, 27]."""
    _, n_books, densities, _ = books.shape
    n_frames = terms.shape[1]
    density = torch.empty(n_frames, n_books, densities, device=terms.device)
    mixtures, exponents = [], []
    for x, book, weight in zip(terms, books, weights, strict=True):
        torch.mm(x, book.flatten(0, 1).T, out=density.view(n_frames, -1))
        peak = density.amax(-1, keepdim=True)
        density.sub_(peak).clamp_min_(_SMALLEST).exp_()
        mixtures.append(torch.bmm(density.transpose(0, 1), weight.transpose(1, 2)))
        exponents.append(peak)
    product = torch.mul(mixtures[0], mixtures[1]).mul_(mixtures[2]).log_()
    return (product.transpose(0, 1) + torch.add(exponents[0], exponents[1]).add_(exponents[2])).flatten(1)
