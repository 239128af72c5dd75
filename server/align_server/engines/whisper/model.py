"""Whisper's encoder and decoder, for inference.

Knows tensors alone. Weights have the names that transformers gives them, so that its checkpoints load as they are; the
architecture is that of https://doi.org/10.48550/arXiv.2212.04356. Everything takes a batch, and nothing in a batch
sees its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from align_server.engines.whisper.size import Dimensions, Head

ALIGNED: Final = 64  # bytes in a cache line


class Attention(nn.Module):
    """Multi-head attention; keys have no bias. The encoder's own, the decoder's own, and between the two."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(
        self, x: torch.Tensor, source: torch.Tensor, *, causal: bool = False, kept: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What x, [batch, n, width], takes from a source, [batch, m, width]; and the scores of the heads `kept`.

        Scores are float32, shape [batch, kept, n, m], before the softmax; None where none is kept.
        """
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(source)), self._split(self.v_proj(source))
        taken = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        scores = None
        if kept:
            some = list(kept)
            scores = (q[:, some] @ k[:, some].transpose(-1, -2)).float() / (q.shape[-1] ** 0.5)
        mixed: torch.Tensor = self.out_proj(taken.transpose(1, 2).flatten(2))
        return mixed, scores


class EncoderLayer(nn.Module):
    """Attention among frames, then a feed-forward part."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames in and out, shape [batch, frames, width]."""
        normal = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normal, normal)[0]
        more: torch.Tensor = self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))
        return x + more


class DecoderLayer(nn.Module):
    """Attention among tokens, then to frames, then a feed-forward part."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, x: torch.Tensor, audio: torch.Tensor, kept: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens in and out, shape [batch, tokens, width], and the scores of the heads `kept`, see Attention."""
        normal = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normal, normal, causal=True)[0]
        taken, scores = self.encoder_attn(self.encoder_attn_layer_norm(x), audio, kept=kept)
        x = x + taken
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), scores


class Encoder(nn.Module):
    """Frames of audio from a spectrogram, two hops each."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(size.bands, size.width, 3, padding=1)
        self.conv2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(size.frames, size.width)
        layer = (size.width, size.encoder_heads, size.encoder_hidden)
        self.layers = nn.ModuleList(EncoderLayer(*layer) for _ in range(size.encoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Frames, shape [batch, n, width], of a spectrogram, [batch, bands, 2n]; n is at most `Dimensions.frames`."""
        x = functional.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        normal: torch.Tensor = self.layer_norm(x)
        return normal


class Decoder(nn.Module):
    """What comes after each token, and where in the audio it looks for that."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.embed_positions = nn.Embedding(size.tokens, size.width)
        layer = (size.width, size.decoder_heads, size.decoder_hidden)
        self.layers = nn.ModuleList(DecoderLayer(*layer) for _ in range(size.decoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(
        self, tokens: torch.Tensor, audio: torch.Tensor, heads: Iterable[Head]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States, [batch, n, width], after tokens, [batch, n], and the scores of `heads`, [batch, heads, n, m].

        `audio` is what the encoder gave, [batch, m, width]. Heads come in order of layer and number, at least one.
        """
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        wanted = sorted(heads)
        scores: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            x, kept = layer(x, audio, tuple(head for at, head in wanted if at == i))
            if kept is not None:
                scores.append(kept)
        return self.layer_norm(x), torch.cat(scores, dim=1)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """How likely each token comes next, float32, shape [..., vocabulary], before the softmax."""
        return functional.linear(states, self.embed_tokens.weight).float()


class Whisper(nn.Module):
    """An encoder and a decoder, under the names of transformers."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)

    @classmethod
    def read(cls, size: Dimensions, dtype: torch.dtype, tensor: Callable[[str], torch.Tensor]) -> Whisper:
        """The model with weights that `tensor` gives by name, copied into memory of its own.

        Raises ValueError for a weight of another shape, and what `tensor` raises.
        """
        with torch.device("meta"):
            model = cls(size)
        # In one piece, which goes back to the system as a whole; many small ones would stay with malloc.
        step = ALIGNED // dtype.itemsize
        memory = torch.empty(sum(-(-weight.numel() // step) * step for weight in model.parameters()), dtype=dtype)
        weights: dict[str, torch.Tensor] = {}
        start = 0
        for name, weight in model.named_parameters():
            found = tensor(name)
            if found.shape != weight.shape:
                raise ValueError(f"{name} has shape {list(found.shape)} where {list(weight.shape)} is expected")
            weights[name] = memory[start : start + weight.numel()].view(weight.shape).copy_(found)
            start += -(-weight.numel() // step) * step
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(requires_grad=False)
