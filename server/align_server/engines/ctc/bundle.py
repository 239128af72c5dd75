"""A model as torchaudio publishes it: its architecture, its labels, and the file of weights in torch's cache.

Finds and downloads the file, and imports neither torch nor torchaudio, so that listing is quick. What MMS_FA says is
torchaudio's own, to the letter: `torchaudio.pipelines.MMS_FA`, version 2.11.
"""

from __future__ import annotations

import http.client
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from align_server.engines import files
from align_server.engines.ctc.checkpoint import FrontEnd, balance
from align_server.engines.download import bring
from align_server.engines.engine import EngineLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from align_server.engines.engine import Progress

NAME: Final = "mms-fa"
LICENCE: Final = "CC-BY-NC-4.0"


@dataclass(frozen=True, slots=True)
class Bundle:
    """`params` are those of `torchaudio.models.wav2vec2_model`; `labels` have each token's character, the blank first.

    The weights are a state dict of that model, which `torch.save` wrote: at `url`, and kept as `file_name`. Their last
    layer has more rows than the model: those in `unused`, which stand for special tokens of fairseq and were never
    trained. `sha256` is the file's, in hex; "" where it is not known.
    """

    url: str
    file_name: str
    params: Mapping[str, Any]
    labels: tuple[str, ...]
    unused: tuple[int, ...] = (1, 2, 3)
    sha256: str = ""

    @property
    def path(self) -> Path:
        """Where torchaudio keeps the file too: in `hub/checkpoints` of TORCH_HOME, as `torch.hub.get_dir` has it."""
        cache = os.getenv("TORCH_HOME", str(Path(os.getenv("XDG_CACHE_HOME", "~/.cache"), "torch")))
        return Path(cache).expanduser() / "hub" / "checkpoints" / self.file_name

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, 0 where it is not there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def front_end(self) -> FrontEnd:
        """The convolutions that make frames of samples."""
        channels, kernels, strides = zip(*self.params["extractor_conv_layer_config"], strict=True)
        return FrontEnd(kernels, strides, channels)

    @property
    def paddable(self) -> bool:
        """Whether padding, with lengths given, changes nothing: group norm would see it."""
        return bool(self.params["extractor_mode"] == "layer_norm")

    @property
    def balance(self) -> float:
        """Frames at which attention takes as long as everything else."""
        width, layers, inner = (
            self.params[f"encoder_{key}"] for key in ("embed_dim", "num_layers", "ff_interm_features")
        )
        return balance(self.front_end, width, layers, inner)

    def digest(self, progress: Progress) -> str:
        """SHA-256 of the file, in hex. Raises EngineLoadError."""
        path = self.path
        try:
            return files.sha256(path, progress)
        except OSError as error:
            raise EngineLoadError(f"{path} cannot be read ({error.strerror}); {self.cure}") from error

    def download(self, progress: Progress) -> None:
        """Bring the file into the cache, under its name only when it is whole. Raises EngineLoadError.

        torch's own loader is not used: it tells nobody how far it is, and begins anew where a connection broke.
        """
        try:
            bring(self.url, self.path, self.sha256, progress)
        except ValueError as error:
            raise EngineLoadError(f"{error}; try again later, and without a proxy between, or {self.cure}") from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineLoadError(
                f"{self.path} is not there, and {self.url} could not be downloaded ({error}); {self.cure}"
            ) from error

    @property
    def cure(self) -> str:
        """What to do where the file is missing or wrong."""
        return (
            f"download {self.url} where there is a network and put it at {self.path}, "
            "or set TORCH_HOME to a cache that has it"
        )


MMS_FA: Final = Bundle(
    url="https://dl.fbaipublicfiles.com/mms/torchaudio/ctc_alignment_mling_uroman/model.pt",
    file_name="model.pt",
    sha256="20ef12963ab4924bef49ac4fc7f58ad5da2ee43b2c11bc8c853c9b90ecdbc680",  # not published; as others found it
    params={
        "extractor_mode": "layer_norm",
        "extractor_conv_layer_config": [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2],
        "extractor_conv_bias": True,
        "encoder_embed_dim": 1024,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 128,
        "encoder_pos_conv_groups": 16,
        "encoder_num_layers": 24,
        "encoder_num_heads": 16,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 4096,
        "encoder_ff_interm_dropout": 0.1,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": True,
        "encoder_layer_drop": 0.1,
        "aux_num_out": 28,
    },
    labels=tuple("-aienoutsrmkldghybpwcvjzf'qx"),
)
