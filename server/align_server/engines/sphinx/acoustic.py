"""Log likelihoods of frames under the model's senones: Gaussian mixtures with a codebook for each phone.

Knows the Gaussians and weights, and nothing of words or search. Works on one utterance at a time, so that a
score cannot depend on what else is in a batch, and without the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from align_server.engines.jit import kernel
from align_server.engines.scripted import scripted

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
        constant = -0.5 * (np.log(2 * np.pi / precision)).sum(-1)
        # Each codebook's likelihoods are scaled so that no density exceeds exp(_RANGE). Twice that lies between
        # the highest and the lowest that can be told apart, so that no frame's own largest need be looked for.
        peaks = constant.max(-1) - _RANGE  # [codebooks, streams]
        self._peaks = peaks.sum(1).astype(np.float32)  # [codebooks]
        constant -= peaks[..., None] + 0.5 * (means**2 * precision).sum(-1)
        terms = np.concatenate([-0.5 * precision, means * precision, constant[..., None]], -1)  # of x squared, x and 1
        self._terms = torch.from_numpy(terms.astype(np.float32)).transpose(0, 1).contiguous().to(device)
        self._weights = torch.from_numpy(model.weights).to(device)
        self._base = model.phones.base

    def __call__(self, features: torch.Tensor, senones: npt.NDArray[np.int64], scale: float = 1.0) -> torch.Tensor:
        """Log likelihoods times `scale`, on the CPU, shape [senones, frames], of ascending senones.

        The mixtures are summed in full.
        """
        order, books, rows, width = _layout(senones, self._base)
        peaks = self._peaks[self._base[senones]]
        return _score(
            features,
            self._terms,
            self._weights,
            torch.from_numpy(order),
            torch.from_numpy(books),
            torch.from_numpy(rows),
            torch.from_numpy(peaks),
            width,
            scale,
        )


@kernel
def _layout(
    senones: npt.NDArray[np.int64], base: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Senones by codebook, padded to equal numbers: their order, the codebooks, each senone's row, the width."""
    counts = np.bincount(base[senones])
    books = np.flatnonzero(counts)
    width = counts.max()
    first = np.cumsum(counts > 0) * width - width  # row of each codebook
    order = np.empty(len(books) * width, np.int64)
    rows = np.empty(len(senones), np.int64)
    taken = np.zeros(len(counts), np.int64)
    for i, senone in enumerate(senones):
        book = base[senone]
        rows[i] = first[book] + taken[book]
        if not taken[book]:
            order[first[book] : first[book] + width] = senone
        order[rows[i]] = senone
        taken[book] += 1
    return order, books, rows, width


def _mixtures(terms: torch.Tensor, books: torch.Tensor, weights: torch.Tensor, least: float = -_RANGE) -> torch.Tensor:
    """Log mixtures [books * width, frames] of terms [streams, 27, frames] in books [streams, books, densities, 27]."""
    streams, n_books, densities, _ = books.shape
    n_frames = terms.size(2)
    density = torch.empty([n_books, densities, n_frames], device=terms.device)
    total = torch.zeros([n_books, weights.size(2), n_frames], device=terms.device)
    for i in range(streams):
        torch.mm(books[i].flatten(0, 1), terms[i], out=density.view(-1, n_frames))
        density.clamp_min_(least).exp_()
        total.add_(torch.bmm(weights[i], density).log_())
    return total.flatten(0, 1)


@scripted
def _score(  # noqa: PLR0913, PLR0917  TorchScript has no objects of ours
    features: torch.Tensor,
    terms: torch.Tensor,
    weights: torch.Tensor,
    order: torch.Tensor,
    books: torch.Tensor,
    rows: torch.Tensor,
    peaks: torch.Tensor,
    width: int,
    scale: float,
    chunk: int = _CHUNK,
) -> torch.Tensor:
    """Scaled log likelihoods [senones, frames] of features [frames, 39]; `terms` and `weights` are the scorer's."""
    device = terms.device
    order, books, rows, peaks = order.to(device), books.to(device), rows.to(device), peaks.to(device)
    streams = terms.size(0)
    x = features.to(device).t().reshape(streams, features.size(1) // streams, -1)
    x = torch.cat([x.square(), x, torch.ones_like(x[:, :1])], dim=1)
    weights = weights.index_select(1, order).view(streams, books.size(0), width, -1)
    terms = terms.index_select(1, books)
    starts = range(0, x.size(2), chunk)
    pieces = [_mixtures(x[:, :, start : start + chunk], terms, weights).index_select(0, rows) for start in starts]
    return torch.cat(pieces, dim=1).add_(peaks[:, None]).mul_(scale).cpu()
