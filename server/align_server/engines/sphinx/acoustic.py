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

_RANGE: Final = 80.0  # nats; exp() of more overflows, of less is slow and lost in the sum
_CHUNK: Final = 256  # frames scored at a time: densities of more than 16 MB would be mapped and faulted in each time


class SenoneScorer:
    """Scores frames against senones. Immutable after construction, so any number of threads may share one."""

    def __init__(self, model: AcousticModel, device: torch.device) -> None:
        precision = 1 / model.variances.astype(np.float64)
        means = model.means.astype(np.float64)
        self._streams, self._size = means.shape[1], means.shape[-1]
        constant = -0.5 * (np.log(2 * np.pi / precision)).sum(-1)
        # Each codebook's likelihoods are scaled so that no density exceeds exp(_RANGE). Twice that lies between
        # the highest and the lowest that can be told apart, so that no frame's own largest need be looked for.
        self._peaks = constant.max(-1) - _RANGE  # [codebooks, streams]
        constant -= self._peaks[..., None] + 0.5 * (means**2 * precision).sum(-1)
        terms = np.concatenate([-0.5 * precision, means * precision, constant[..., None]], -1)  # of x squared, x and 1
        self._terms = torch.from_numpy(terms.astype(np.float32)).transpose(0, 1).contiguous().to(device)
        self._weights = torch.from_numpy(model.weights).to(device)
        self._base = model.phones.base
        self._device = device

    def __call__(self, features: torch.Tensor, senones: npt.NDArray[np.int64]) -> torch.Tensor:
        """Log likelihoods, shape [senones, frames], of ascending senones. The mixtures are summed in full."""
        order, books, rows, width = self._layout(senones)
        x = features.to(self._device).T.reshape(self._streams, self._size, -1)
        terms = torch.cat([x.square(), x, torch.ones_like(x[:, :1])], dim=1)
        weights = self._weights.index_select(1, order).view(self._streams, len(books), width, -1)
        chosen = self._terms.index_select(1, books)
        peaks = torch.from_numpy(self._peaks.sum(1)[self._base[senones]].astype(np.float32)).to(self._device)
        starts = range(0, len(features), _CHUNK)
        pieces = (_mixtures(terms[:, :, start : start + _CHUNK], chosen, weights) for start in starts)
        return torch.cat([piece.index_select(0, rows) for piece in pieces], dim=1).add_(peaks[:, None])

    def _layout(self, senones: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """Senones by codebook, padded to equal numbers: their order, the codebooks, each senone's row, the width."""
        books, first, group, count = np.unique(
            self._base[senones], return_index=True, return_inverse=True, return_counts=True
        )
        width = int(count.max())
        place = np.argsort(np.argsort(group, kind="stable"), kind="stable") - (np.cumsum(count) - count)[group]
        rows = group * width + place
        order = np.repeat(senones[first], width)
        order[rows] = senones
        arrays = (order, books.astype(np.int64), rows)
        wanted, chosen, found = (torch.from_numpy(array).to(self._device) for array in arrays)
        return wanted, chosen, found, width


def _mixtures(terms: torch.Tensor, books: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Log mixtures [books * width, frames] of terms [streams, 27, frames] in books [streams, books, densities, 27]."""
    _, n_books, densities, _ = books.shape
    n_frames = terms.shape[2]
    density = torch.empty(n_books, densities, n_frames, device=terms.device)
    total = torch.zeros(n_books, weights.shape[2], n_frames, device=terms.device)
    for x, book, weight in zip(terms, books, weights, strict=True):
        torch.mm(book.flatten(0, 1), x, out=density.view(-1, n_frames))
        density.clamp_min_(-_RANGE).exp_()
        total += torch.bmm(weight, density).log_()
    return total.flatten(0, 1)
