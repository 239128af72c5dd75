"""Whisper's encoder and decoder, for inference.

Knows tensors alone. Weights have the names that transformers gives them, so that its checkpoints load as they are; the
architecture is that of https://doi.org/10.48550/arXiv.2212.04356. Everything takes a batch, and nothing in a batch
sees its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn
from torch.nn import functional

from align_server.engines.pages import few_at_a_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from align_server.engines.whisper.size import Dimensions, Head

ALIGNED: Final = 64  # bytes in a cache line


@dataclass(frozen=True, slots=True, eq=False)
class LayerMemory:
    """What a layer of the decoder keeps of one segment: keys and values of the tokens so far, and of the audio.

    Each has the shape [1, heads, length, width // heads]; there is room for as many tokens as the model takes.
    """

    keys: torch.Tensor
    values: torch.Tensor
    audio_keys: torch.Tensor
    audio_values: torch.Tensor


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

    def keys_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a source, [1, m, width], each of shape [1, heads, m, width // heads]."""
        return self._split(self.k_proj(source)).contiguous(), self._split(self.v_proj(source)).contiguous()

    def look(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What one token's x, [1, width], takes from keys and values, each [1, heads, m, width // heads]."""
        q = self.q_proj(x).view(1, self.heads, 1, -1)
        taken = functional.scaled_dot_product_attention(q, keys, values)
        mixed: torch.Tensor = self.out_proj(taken.view(1, -1))
        return mixed


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

    def step(self, x: torch.Tensor, memory: LayerMemory, at: int) -> torch.Tensor:
        """The token at place `at` in and out, shape [1, width]; those before it are in the memory, it is put there."""
        normal = self.self_attn_layer_norm(x)
        own = self.self_attn
        memory.keys[0, :, at] = own.k_proj(normal).view(own.heads, -1)
        memory.values[0, :, at] = own.v_proj(normal).view(own.heads, -1)
        x = x + own.look(normal, memory.keys[:, :, : at + 1], memory.values[:, :, : at + 1])
        x = x + self.encoder_attn.look(self.encoder_attn_layer_norm(x), memory.audio_keys, memory.audio_values)
        more: torch.Tensor = self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))
        return x + more


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

    @property
    def _layers(self) -> Iterable[DecoderLayer]:
        return cast("Iterable[DecoderLayer]", self.layers)

    def remember(self, audio: torch.Tensor) -> list[LayerMemory]:
        """What `step` needs to know of a segment, [1, m, width], before its first token."""
        made = []
        for layer in self._layers:
            keys, values = layer.encoder_attn.keys_values(audio)
            room = (1, keys.shape[1], self.embed_positions.num_embeddings, keys.shape[3])
            made.append(LayerMemory(audio.new_empty(room), audio.new_empty(room), keys, values))
        return made

    def step(self, token: int, at: int, memory: list[LayerMemory]) -> torch.Tensor:
        """The state, [1, width], after the token at place `at`; all those before it were given in turn."""
        x = self.embed_tokens.weight[token : token + 1] + self.embed_positions.weight[at : at + 1]
        for layer, own in zip(self._layers, memory, strict=True):
            x = layer.step(x, own, at)
        normal: torch.Tensor = self.layer_norm(x)
        return normal

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
        tensor = few_at_a_time(tensor)
        for name, weight in model.named_parameters():
            found = tensor(name)
            if found.shape != weight.shape:
                raise ValueError(f"{name} has shape {list(found.shape)} where {list(weight.shape)} is expected")
            weights[name] = memory[start : start + weight.numel()].view(weight.shape).copy_(found)
            start += -(-weight.numel() // step) * step
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(requires_grad=False)
