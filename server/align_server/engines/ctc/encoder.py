"""wav2vec 2.0 and HuBERT on the CPU, one segment at a time, with every step in the layout [frames, channels].

Knows tensors and their published names; knows neither words nor files.
Source: A. Baevski et al., wav2vec 2.0, https://doi.org/10.48550/arXiv.2006.11477. The architecture is that of
transformers' `Wav2Vec2ForCTC` and `HubertForCTC` and of torchaudio's `wav2vec2_model`, and so are the results; only
the order of the work differs. A convolution is a matrix product of windows that are rows of memory as it lies: no step
transposes, which takes the usual front end a quarter of all time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F  # noqa: N812  the name that everybody gives it

from align_server.engines.ctc.agreement import agreed
from align_server.engines.ctc.packed import Packed, finished, own
from align_server.engines.ctc.quantised import Quantised
from align_server.engines.ctc.rows import normalise, softmax
from align_server.engines.pages import few_at_a_time
from align_server.engines.precision import INT8, floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Weights = Callable[[str], torch.Tensor]

CHUNK: Final = 48  # frames of the result that the front end computes at a time: a second, whose layers fit a cache
# Frames are rounded up to so many: for every new number of them oneDNN compiles code, 5 MB in 8 ms, and keeps that of
# some hundred numbers.
STEP: Final = 16
WINDOWS: Final = 2_500_000  # values of windows that are laid out at a time
SCORES: Final = 1_000_000  # of attention that are computed at a time: no more than a core's caches hold


@dataclass(frozen=True, slots=True)
class Shape:
    """An architecture. `convolutions` has each one's kernel and stride, in samples or frames of the one before.

    `group_norm` normalises the first convolution over time, as base models have it; else each is normalised over its
    channels. `pre_norm` normalises before attention and feed-forward part, as large models do, and not after.
    `adapted`: whether each layer ends with a step that a language can replace; only models with `pre_norm` have it.
    """

    convolutions: tuple[tuple[int, int], ...]
    convolution_bias: bool
    group_norm: bool
    pre_norm: bool
    layers: int
    heads: int
    position_groups: int
    epsilon: float = 1e-5
    adapted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """A weight, [out, in] or [channels], and its bias. Called, it is a linear map of the last dimension."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        return finished(F.linear(x, self.weight, self.bias), gelu=gelu)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One transformer layer; `qkv` makes queries, scaled, keys and values in one product."""

    qkv: Packed | Quantised
    out: Packed | Quantised
    norm: _Affine
    inner: Packed | Quantised
    outer: Packed | Quantised
    final_norm: _Affine


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What is added to a layer's output: it is normalised, brought to a few channels, and brought back."""

    norm: _Affine
    down: _Affine
    up: _Affine


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What a model needs to know one language: a step after each layer, and its last layer, in float32.

    Source: V. Pratap et al. 2023, https://doi.org/10.48550/arXiv.2305.13516; the step is that of transformers'
    `Wav2Vec2AttnAdapterLayer`.
    """

    steps: tuple[_Step, ...]
    head: _Affine

    @classmethod
    def read(cls, shape: Shape, weights: Weights, dtype: torch.dtype) -> Adapter:
        """Read one for a model of that shape and `dtype`, as Encoder reads its weights."""
        names = [f"encoder.transformer.layers.{i}.adapter_layer" for i in range(shape.layers)]
        parts = ("norm", "linear_1", "linear_2")
        steps = (_Step(*(_affine(weights, f"{name}.{part}", dtype) for part in parts)) for name in names)
        return cls(tuple(steps), _affine(weights, "aux", torch.float32))


@dataclass(frozen=True, slots=True)
class _Reread:
    """Layers that are not kept: each is read when its turn comes."""

    read: Callable[[str], _Layer]
    names: Sequence[str]

    def __iter__(self) -> Iterator[_Layer]:
        return map(self.read, self.names)


class Encoder(torch.nn.Module):
    """A model with its weights in `dtype`, those of the last layer in float32. Any number of threads may share one.

    Where it is `quantised`, the four products of each transformer layer, which are most of the work, are in int8.

    `weights` gives a tensor by its name in torchaudio; see `torchaudio_name` for those of transformers. It is asked for
    one tensor at a time, so that no more than one is in memory twice. Raises KeyError where it has none of a name.
    Where layers are not kept, each is read again whenever it is needed.
    """

    def __init__(
        self, shape: Shape, weights: Weights, dtype: torch.dtype, *, keep_layers: bool = True, quantised: bool = False
    ) -> None:
        super().__init__()
        self._shape = shape
        self._dtype = dtype

        def affine(name: str) -> _Affine:
            return _affine(weights, name, dtype)

        def product(weight: torch.Tensor, bias: torch.Tensor) -> Packed | Quantised:
            return Quantised(weight, bias) if quantised else Packed(weight, bias, dtype)

        def layer(name: str) -> _Layer:
            q, k, v = (_pair(weights, f"{name}.attention.{part}_proj") for part in "qkv")
            scale = (len(q[0]) // shape.heads) ** -0.5  # of scores
            q = (q[0] * scale, q[1] * scale)
            return _Layer(
                qkv=product(*map(torch.cat, zip(q, k, v, strict=True))),
                out=product(*_pair(weights, f"{name}.attention.out_proj")),
                norm=affine(f"{name}.layer_norm"),
                inner=product(*_pair(weights, f"{name}.feed_forward.intermediate_dense")),
                outer=product(*_pair(weights, f"{name}.feed_forward.output_dense")),
                final_norm=affine(f"{name}.final_layer_norm"),
            )

        self._convolutions: list[Packed] = []
        self._norms: list[_Affine] = []
        for i in range(len(shape.convolutions)):
            name = f"feature_extractor.conv_layers.{i}"
            kernels = weights(f"{name}.conv.weight")  # [out, in, kernel] -> [out, kernel * in]
            weight = kernels.permute(0, 2, 1).flatten(1)
            bias = weights(f"{name}.conv.bias") if shape.convolution_bias else None
            if i == 0 or not shape.group_norm:
                self._norms.append(affine(f"{name}.layer_norm"))
            if i == 0 and shape.group_norm:
                self._first = own(weight, dtype)  # see _first_over_time
            else:
                self._convolutions.append(Packed(weight, bias, dtype))
        self._input_norm = affine("encoder.feature_projection.layer_norm")
        self._projection = Packed(*_pair(weights, "encoder.feature_projection.projection"), dtype)
        position = "encoder.transformer.pos_conv_embed.conv"
        kernels = _normalised(weights, position)  # [out, in of a group, kernel]
        self._reach = kernels.shape[-1]  # frames
        groups = kernels.permute(0, 2, 1).flatten(1).chunk(shape.position_groups)
        biases = weights(f"{position}.bias").chunk(shape.position_groups)
        self._position = [Packed(weight, bias, dtype) for weight, bias in zip(groups, biases, strict=True)]
        self._norm = affine("encoder.transformer.layer_norm")
        names = [f"encoder.transformer.layers.{i}" for i in range(shape.layers)]
        self._layers: Iterable[_Layer] = list(map(layer, names)) if keep_layers else _Reread(layer, names)
        self._adapter = Adapter.read(shape, weights, dtype) if shape.adapted else None
        self._head = self._adapter.head if self._adapter else _affine(weights, "aux", torch.float32)
        kernel, hop = shape.convolutions[-1]
        for k, s in reversed(shape.convolutions[:-1]):
            kernel, hop = (kernel - 1) * s + k, hop * s
        self._field, self._hop = kernel, hop  # samples

    def forward(self, samples: torch.Tensor, adapter: Adapter | None = None) -> torch.Tensor:
        """Logits, float32, shape [frames, vocabulary], of float32 samples, shape [samples], at least one frame.

        `adapter` is in the model's dtype and replaces its own, the last layer with it; only for models that have one.
        """
        adapter = adapter or self._adapter
        shape = self._shape
        frames = (len(samples) - self._field) // self._hop + 1
        x = self._front_end(samples.to(self._dtype), frames)
        x = self._projection(self._normalise(x, self._input_norm))
        x[frames:] = 0  # what was added to round up is not heard by any other frame
        x = x + self._positions(x)
        if not shape.pre_norm:
            x = self._normalise(x, self._norm)
        for layer, step in zip(self._layers, adapter.steps if adapter else itertools.repeat(None), strict=False):
            if shape.pre_norm:
                x = self._attention(self._normalise(x, layer.norm), frames, layer, x)
                x = _feed_forward(self._normalise(x, layer.final_norm), layer, x)
                if step is not None:
                    x = x + step.up(F.relu(step.down(self._normalise(x, step.norm))))
            else:
                x = self._normalise(self._attention(x, frames, layer, x), layer.norm)
                x = self._normalise(_feed_forward(x, layer, x), layer.final_norm)
        if shape.pre_norm:
            x = self._normalise(x, self._norm)
        return (adapter.head if adapter else self._head)(x[:frames].float())

    def _front_end(self, samples: torch.Tensor, frames: int) -> torch.Tensor:
        """Frames, shape [rounded up, channels], computed CHUNK at a time."""
        rounded = -(-frames // STEP) * STEP
        convolutions: Sequence[_Affine | Packed] = self._convolutions
        if self._shape.group_norm:
            convolutions = [self._first_over_time(samples), *convolutions]
        samples = F.pad(samples, (0, max(0, (rounded - 1) * self._hop + self._field - len(samples))))
        room = samples.new_empty(WINDOWS)
        pieces = []
        for start in range(0, rounded, CHUNK):
            end = min(start + CHUNK, rounded)
            x = samples[start * self._hop : (end - 1) * self._hop + self._field, None]
            for i, convolution in enumerate(convolutions):
                x = _convolve(convolution, x, self._shape.convolutions[i], room, gelu=self._shape.group_norm)
                if not self._shape.group_norm:
                    x = self._normalise(x, self._norms[i], gelu=True)
            pieces.append(x)
        return torch.cat(pieces)

    def _first_over_time(self, samples: torch.Tensor) -> _Affine:
        """The first convolution with its norm over all frames: group norm with as many groups as channels, folded in.

        A channel is the product of a window of samples and its kernel, so its mean and variance follow from the mean
        and the covariance of the windows, and nothing as long as the segment has to be normalised or kept.
        The convolution's own bias cancels out.
        """
        windows = _windows(samples[:, None], *self._shape.convolutions[0]).double()
        mean = windows.mean(0)
        windows -= mean
        weight, norm = self._first.double(), self._norms[0]
        variance = (weight @ (windows.T @ windows / len(windows)) * weight).sum(1)
        scale = norm.weight / (variance + self._shape.epsilon).sqrt()
        bias = -weight @ mean * scale + norm.bias
        return _Affine((weight * scale[:, None]).to(self._dtype), bias.to(self._dtype))

    def _normalise(self, x: torch.Tensor, norm: _Affine, *, gelu: bool = False) -> torch.Tensor:
        return normalise(x, norm.weight, norm.bias, self._shape.epsilon, gelu=gelu)

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        """The convolutional position embedding: of each group of channels one matrix product of all windows."""
        before = self._reach // 2
        padded = F.pad(x, (0, 0, before, self._reach - 1 - before))
        groups = padded.chunk(len(self._position), dim=1)
        room = x.new_empty(WINDOWS)
        found = (
            _convolve(position, group, (self._reach, 1), room, gelu=True)
            for position, group in zip(self._position, groups, strict=True)
        )
        return torch.cat(list(found), dim=1)

    def _attention(self, x: torch.Tensor, frames: int, layer: _Layer, plus: torch.Tensor) -> torch.Tensor:
        """Self-attention among the first `frames`, and `plus`; by blocks that fit a cache, twice as fast as torch."""
        rounded, width = x.shape
        size = width // self._shape.heads
        q, k, v = layer.qkv(x).view(rounded, 3, self._shape.heads, size).permute(1, 2, 0, 3).contiguous()
        heard = torch.empty_like(q)
        keys = k.transpose(1, 2)
        heads = max(1, SCORES // rounded**2)  # at a time
        blocks = -(-rounded * rounded // SCORES)
        rows = -(-rounded // blocks // STEP) * STEP  # alike: few rows are multiplied at an eighth of the rate of many
        for head in range(0, self._shape.heads, heads):
            here = slice(head, head + heads)
            for row in range(0, rounded, rows):
                to = slice(row, row + rows)
                shares = softmax(torch.bmm(q[here, to], keys[here]), frames)
                heard[here, to] = torch.bmm(shares, v[here])
        return layer.out(heard.transpose(0, 1).reshape(rounded, width), plus=plus)


def read(shape: Shape, weights: Weights, precision: str) -> tuple[Encoder, str]:
    """A model for inference, and the precision that it has: a finer one than `precision` where it has to be.

    That takes a forward in fp32 with one layer in memory at a time; int8 and bf16 have to agree with it, see `agreed`.
    Raises KeyError as Encoder does, and EngineLoadError as Quantised.
    """
    weights = few_at_a_time(weights)

    def make(name: str) -> Encoder:
        return Encoder(shape, weights, floating(name), quantised=name == INT8)

    def exact(samples: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = Encoder(shape, weights, torch.float32, keep_layers=False)(samples)
        return logits

    return agreed(precision, make, Encoder.__call__, exact)


def _affine(weights: Weights, name: str, dtype: torch.dtype) -> _Affine:
    return _Affine(*(own(tensor, dtype) for tensor in _pair(weights, name)))


def _pair(weights: Weights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its bias."""
    return weights(f"{name}.weight"), weights(f"{name}.bias")


def torchaudio_name(name: str, family: str) -> str:
    """The name that transformers gives to what torchaudio calls `name`; `family` is the model type, such as hubert."""
    if name.startswith("aux."):
        return name.replace("aux.", "lm_head.", 1)
    for ours, theirs in (("encoder.transformer.", "encoder."), ("encoder.feature_projection.", "feature_projection.")):
        if name.startswith(ours):
            return f"{family}.{theirs}{name.removeprefix(ours)}"
    return f"{family}.{name}"


def _normalised(weights: Weights, name: str) -> torch.Tensor:
    """The weight of a convolution, [out, in, kernel], kept as its direction and its length for each tap.

    Checkpoints from before PyTorch 2 call these `weight_v` and `weight_g`.
    """
    try:
        direction = weights(f"{name}.parametrizations.weight.original1")
        length = weights(f"{name}.parametrizations.weight.original0")
    except KeyError:
        direction, length = weights(f"{name}.weight_v"), weights(f"{name}.weight_g")
    direction = direction.float()
    return direction.mul(length.float() / torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True))


def _feed_forward(x: torch.Tensor, layer: _Layer, plus: torch.Tensor) -> torch.Tensor:
    return layer.outer(layer.inner(x, gelu=True), plus=plus)


def _convolve(
    product: Packed | _Affine, x: torch.Tensor, window: tuple[int, int], room: torch.Tensor, *, gelu: bool
) -> torch.Tensor:
    """A convolution of [frames, channels], its `window` a kernel and a stride: the product of all windows.

    Where windows overlap, they are laid out in `room`, some at a time: oneDNN does not take them as they lie, and
    memory that torch would take for a copy of them costs more than the copying.
    """
    windows = _windows(x, *window)
    kernel, stride = window
    if kernel <= stride:
        return product(windows, gelu=gelu)
    width = windows.shape[1]
    blocks = torch.split(windows, max(1, len(room) // width // STEP) * STEP)
    found = [product(room[: block.numel()].view(-1, width).copy_(block), gelu=gelu) for block in blocks]
    return torch.cat(found) if len(found) > 1 else found[0]


def _windows(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """All windows of `kernel` frames, one every `stride`, shape [windows, kernel * channels], of [frames, channels].

    A window is a row of memory as it lies, and so what is returned is no copy: a convolution is its product with a
    weight of [out, kernel * channels].
    """
    frames, channels = x.shape
    count = (frames - kernel) // stride + 1
    return x.contiguous().as_strided((count, kernel * channels), (stride * channels, 1))
