"""The files of a CMU Sphinx acoustic model (PTM: one codebook for each phone), read into arrays.

Knows the file formats and nothing of audio or search. Every fault is an EngineLoadError that names
the file. Formats follow what CMU SphinxTrain writes; all numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from align_server.engines.engine import EngineLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Integers = npt.NDArray[np.int32]

NAME: Final = "sphinx-en-us"
LANGUAGES: Final = ("eng",)
LICENCE: Final = "BSD-2-Clause"

# What of the pocketsphinx 5.1.1 wheel is read: name in its model folder, size in bytes, SHA-256.
FILES: Final = (
    ("en-us/mdef", 2_959_176, "2360f9a86889c1cfee8bd618a0269387911e5fb2920a594f506b18b8c79683b0"),
    ("en-us/means", 838_732, "832019e32cac12eb318964f96f469034acb12d0348eeddc3831831a100cb4dd4"),
    ("en-us/variances", 838_732, "b00d696f85e96834fc10f8e5f06428d8c4db6bffdbe5845b6f69bf6efbc48fa5"),
    ("en-us/sendump", 1_969_024, "8c9564c0d5bef69ca9d9bf1014abe162f071644cf02cf1fa8a483c3dc165a7a8"),
    ("en-us/transition_matrices", 2_080, "c1f7f28ea43177be734be1f88bd7f1b9a853d0e660f8599c67c6eaeca8bb539a"),
    ("cmudict-en-us.dict", 3_275_645, "20b5c293e1f311fb375fe067e500ec5636f4fc7af5594967263696def9b23bfe"),
)

STATES: Final = 3  # emitting states of every phone, left to right without skips
INTERNAL, BEGIN, END, SINGLE = range(4)  # where in its word a triphone stands

_REPAIR: Final = "install the model again: pip install --force-reinstall pocketsphinx==5.1.1"
_BYTE_ORDER: Final = 0x11223344
_VARIANCE_FLOOR: Final = 1e-4
_TRANSITION_FLOOR: Final = 1e-4
_LOG_BASE: Final = 1024 * np.log(1.0001)  # nats in one step of a quantised mixture weight
_MDEF_COUNTS: Final = struct.Struct("<10i")
_PHONE: Final = np.dtype([("sseq", "<i4"), ("transitions", "<i4"), ("info", "u1", 4)])


@dataclass(frozen=True, slots=True, eq=False)
class PhoneSet:
    """The phones of the model and the senones of each in context.

    `triphones[position, base, left, right]` is a row of `senones`, the back-off applied;
    `senones[row]` has one senone for each of the three states. Phone i's own, context-independent
    senones are 3i, 3i+1 and 3i+2; `base[senone]` is the phone a senone belongs to, `state[senone]` its state.
    """

    names: tuple[str, ...]
    silence: int
    filler: npt.NDArray[np.bool_]  # [phones]
    triphones: npt.NDArray[np.uint16]  # [4, phones, phones, phones]
    senones: npt.NDArray[np.uint16]  # [rows, 3]
    base: Integers  # [senones]
    state: Integers  # [senones]


@dataclass(frozen=True, slots=True, eq=False)
class AcousticModel:
    """Everything the search needs: phones, Gaussians, mixture weights and transitions."""

    phones: PhoneSet
    means: Floats  # [phones, streams, densities, 13]
    variances: Floats  # as means
    weights: Floats  # [streams, senones, densities], linear
    transitions: Floats  # [phones, 3, 4], natural logarithms

    @classmethod
    def load(cls, folder: Path) -> AcousticModel:
        """Read the model in `folder`. Raises EngineLoadError."""
        phones = read_phones(folder / "mdef")
        means = read_gaussians(folder / "means")
        variances = read_gaussians(folder / "variances")
        weights = read_weights(folder / "sendump")
        transitions = read_transitions(folder / "transition_matrices")
        n_phones, n_senones = len(phones.names), len(phones.base)
        facts = {
            "means": means.shape == variances.shape and len(means) == n_phones,
            "sendump": weights.shape == (means.shape[1], n_senones, means.shape[2]),
            "transition_matrices": transitions.shape == (n_phones, STATES, STATES + 1),
        }
        for name, fits in facts.items():
            if not fits:
                raise EngineLoadError(f"{folder / name} does not belong to the mdef beside it; {_REPAIR}")
        return cls(phones, means, np.maximum(variances, np.float32(_VARIANCE_FLOOR)), weights, transitions)


def model_folder() -> Path:
    """The folder of the en-us model and dictionary in the pocketsphinx wheel, whose code is not imported."""
    spec = importlib.util.find_spec("pocketsphinx")
    if spec is None or not spec.submodule_search_locations:
        raise EngineLoadError(
            "the pocketsphinx package, which carries the en-us model, is missing: pip install 'chatalign[server]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model" / "en-us"


def verified(folder: Path) -> Iterator[bytes]:
    """The contents of FILES in `folder`, in order. Raises EngineLoadError at the first that is not as shipped."""
    for name, size, sha256 in FILES:
        data = _read(folder / name)
        if len(data) != size:
            raise _broken(folder / name, f"it has {len(data)} bytes where pocketsphinx 5.1.1 has {size}")
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise _broken(folder / name, f"its SHA-256 is {found} where pocketsphinx 5.1.1 has {sha256}")
        yield data


def read_gaussians(path: Path) -> Floats:
    """Means or variances, shape [codebooks, streams, densities, 13]."""
    body = _read_s3(path)
    if len(body) < 7:
        raise _broken(path, "it ends within its header")
    codebooks, streams, densities = (int(n) for n in body[:3].view("<i4"))
    if streams != 3:
        raise _broken(path, f"it has {streams} feature streams where 3 are expected")
    *lengths, count = (int(n) for n in body[3:7].view("<i4"))
    values = body[7:].view("<f4")
    if lengths != [13, 13, 13] or len(values) != count or count != codebooks * streams * densities * 13:
        raise _broken(path, f"{len(values)} values do not fill {codebooks} codebooks of {densities} densities")
    return values.reshape(codebooks, streams, densities, 13).astype(np.float32)


def read_transitions(path: Path) -> Floats:
    """Log transition probabilities, shape [phones, 3, 4]; the impossible ones are -inf."""
    body = _read_s3(path)
    if len(body) < 4:
        raise _broken(path, "it ends within its header")
    matrices, sources, targets, count = (int(n) for n in body[:4].view("<i4"))
    values = body[4:].view("<f4")
    if (sources, targets) != (STATES, STATES + 1) or len(values) != count or count != matrices * STATES * (STATES + 1):
        raise _broken(path, f"{len(values)} values do not fill {matrices} matrices of {sources} by {targets}")
    counts = values.reshape(matrices, sources, targets).astype(np.float64)
    allowed = np.eye(STATES, STATES + 1, dtype=bool) | np.eye(STATES, STATES + 1, k=1, dtype=bool)
    if (counts[:, ~allowed] != 0).any() or not (counts[:, allowed] > 0).all():
        raise _broken(path, "its phones are not left-to-right without skips")
    share = counts / counts.sum(-1, keepdims=True)
    share[:, allowed] = np.maximum(share[:, allowed], _TRANSITION_FLOOR)
    share /= share.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        logarithms: Floats = np.log(share).astype(np.float32)
    return logarithms


def read_weights(path: Path) -> Floats:
    """Mixture weights, shape [streams, senones, densities], linear."""
    data = _read(path)
    at = 0
    while True:  # a list of texts, each after its length, that a length of zero ends
        length = _int(path, data, at)
        at += 4
        if length == 0:
            break
        if not 0 < length <= len(data) - at:
            raise _broken(path, f"at byte {at} a text of {length} bytes does not fit")
        at += length
    densities, senones = _int(path, data, at), _int(path, data, at + 4)
    rest = len(data) - at - 8
    streams = 3
    if densities <= 0 or senones <= 0 or rest != streams * densities * senones:
        raise _broken(path, f"{rest} bytes do not hold {streams} streams of {densities} weights for {senones} senones")
    steps = np.frombuffer(data, np.uint8, offset=at + 8).reshape(streams, densities, senones)
    linear = np.exp(-_LOG_BASE * np.arange(256)).astype(np.float32)
    return np.ascontiguousarray(linear[steps].transpose(0, 2, 1))


def read_phones(path: Path) -> PhoneSet:
    """The phone inventory and the senones of every triphone."""
    data = _read(path)
    if data[:4] != b"BMDF" or _int(path, data, 4) != 1:
        raise _broken(path, f"it starts with {data[:8]!r}, not as a binary model definition of version 1")
    at = 12 + _int(path, data, 8)
    if not 12 <= at <= len(data) - _MDEF_COUNTS.size:
        raise _broken(path, "it ends within its header")
    counts = _MDEF_COUNTS.unpack_from(data, at)
    n_ci, n_phones, n_states, n_ci_senones, n_senones, _, n_sseq, _, n_tree, silence = counts
    if min(counts) < 0 or n_states != STATES or n_ci_senones != STATES * n_ci or not silence < n_ci <= n_phones:
        raise _broken(path, f"its counts make no sense: {counts}")
    at += _MDEF_COUNTS.size
    start = at
    names = []
    for _ in range(n_ci):
        end = data.find(b"\0", at)
        if end < 0:
            raise _broken(path, "it ends within the phone names")
        names.append(data[at:end].decode("ascii", "replace"))
        at = end + 1
    at += -(at - start) % 4 + 8 * n_tree  # the tree is not needed: the triphones themselves follow it
    tail = at + _PHONE.itemsize * n_phones
    if len(data) != tail + 4 + 2 * STATES * n_sseq:
        raise _broken(path, f"it has {len(data)} bytes, its counts ask for {tail + 4 + 2 * STATES * n_sseq}")
    phones = np.frombuffer(data, _PHONE, n_phones, at)
    senones = np.frombuffer(data, "<u2", STATES * n_sseq, tail + 4).reshape(n_sseq, STATES)
    if phones["sseq"].min() < 0 or phones["sseq"].max() >= n_sseq or senones.max() >= n_senones:
        raise _broken(path, "it points past its own tables")
    filler = phones["info"][:n_ci, 0].astype(bool)
    base, state = _owners(path, phones, senones, n_ci, n_senones)
    triphones = _triphone_table(phones, n_ci, silence, filler)
    return PhoneSet(tuple(names), silence, filler, triphones, senones, base, state)


def _owners(
    path: Path, phones: npt.NDArray[np.void], senones: npt.NDArray[np.uint16], n_ci: int, n_senones: int
) -> tuple[Integers, Integers]:
    """Which phone and state each senone belongs to; a senone shared between two is refused."""
    owner = np.concatenate([np.arange(n_ci), phones["info"][n_ci:, 1]])
    key = owner[:, None] * STATES + np.arange(STATES)
    used = senones[phones["sseq"]]
    owners = np.full(n_senones, -1)
    owners[used] = key
    if (owners < 0).any() or (owners[used] != key).any():
        raise _broken(path, "a senone belongs to no phone state, or to two")
    return (owners // STATES).astype(np.int32), (owners % STATES).astype(np.int32)


def _triphone_table(
    phones: npt.NDArray[np.void], n_ci: int, silence: int, filler: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint16]:
    """Senone rows of [position, base, left, right], unseen ones backed off.

    In turn: filler contexts as silence, the same contexts at other word positions, silence for the
    contexts outside the word (first at this position, then at others), the phone without context.
    """
    info = phones["info"][n_ci:]
    seen = np.full((4, n_ci, n_ci, n_ci), -1, np.int32)
    seen[tuple(info.T)] = phones["sseq"][n_ci:]
    context = np.where(filler, silence, np.arange(n_ci))
    exact = seen[:, :, context[:, None], context]

    anywhere = np.full(exact.shape[1:], -1, np.int32)
    for position in reversed(range(4)):  # the first position that has the triphone wins
        anywhere = np.where(exact[position] >= 0, exact[position], anywhere)
    table = np.where(exact >= 0, exact, anywhere)
    for position in (BEGIN, END, SINGLE):
        left = np.full(n_ci, silence) if position in {BEGIN, SINGLE} else np.arange(n_ci)
        right = np.full(n_ci, silence) if position in {END, SINGLE} else np.arange(n_ci)
        edge = np.where(exact[position] >= 0, exact[position], anywhere)[:, left[:, None], right]
        table[position] = np.where(table[position] >= 0, table[position], edge)
    alone = phones["sseq"][:n_ci, None, None]
    return np.where(table >= 0, table, alone).astype(np.uint16)


def _read_s3(path: Path) -> npt.NDArray[np.uint32]:
    """The body of an s3 file as 32-bit words, its checksum verified."""
    data = _read(path)
    head = data.find(b"endhdr\n")
    if not data.startswith(b"s3\n") or head < 0:
        raise _broken(path, f"it starts with {data[:8]!r}, not as an s3 file")
    rest = data[head + len(b"endhdr\n") :]
    if len(rest) % 4 or len(rest) < 8:
        raise _broken(path, "it is cut off")
    words = np.frombuffer(rest, "<u4")
    if words[0] != _BYTE_ORDER:
        raise _broken(path, f"its byte order mark is {words[0]:#x}, not {_BYTE_ORDER:#x}")
    total = 0
    for word in words[1:-1].tolist():
        total = ((total << 20 | total >> 12) + word) & 0xFFFFFFFF
    if total != words[-1]:
        raise _broken(path, f"its checksum is {words[-1]:#010x}, its contents give {total:#010x}")
    return words[1:-1]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineLoadError(f"cannot read {path}: {error.strerror}; {_REPAIR}") from error


def _int(path: Path, data: bytes, at: int) -> int:
    if at + 4 > len(data):
        raise _broken(path, "it ends within its header")
    return int.from_bytes(data[at : at + 4], "little", signed=True)


def _broken(path: Path, what: str) -> EngineLoadError:
    return EngineLoadError(f"{path} is not a usable model file: {what}; {_REPAIR}")
