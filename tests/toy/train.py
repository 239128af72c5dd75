"""Train the toy checkpoint: `python tests/toy/train.py FOLDER` writes a CTC model of the letters of `tones`.

It is what `tests/toy/checkpoint` was made with, in minutes on one core; the seed is fixed. Besides the CTC loss, which
says what is heard, each frame has its own target, which says when: peaks of CTC alone may lie anywhere in a letter.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toy.tones import LETTERS, RATE, Utterance, some_words, utterance

SEED: Final = 20_261
STEPS: Final = 700
SECONDS_A_STEP: Final = 40  # of audio, in as many utterances as that makes
LONGEST: Final = 16  # words, about as many seconds
RATE_OF_LEARNING: Final = 4e-3
CTC_SHARE: Final = 0.2  # of the CTC loss, beside the frames' own
HELD_OUT: Final = 10**9  # seeds of training are below

VOCABULARY: Final = ("<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS)
BLANK: Final = VOCABULARY.index("<pad>")
DELIMITER: Final = VOCABULARY.index("|")
NO_FRAME: Final = -100
HOP: Final = 320
FIELD: Final = 400

CONFIG: Final = Wav2Vec2Config(
    vocab_size=len(VOCABULARY),
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    conv_dim=(32, 32, 32, 48, 48, 64, 64),
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=8,
    apply_spec_augment=False,
    mask_time_prob=0.0,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    pad_token_id=BLANK,
    ctc_loss_reduction="mean",
    initializer_range=0.1,  # for so narrow a model
)


def say(line: str) -> None:
    """Show a line at once, also in a file."""
    print(line, flush=True)  # noqa: T201  a script's progress


def frame_targets(said: Utterance) -> list[int]:
    """The token of each frame: the letter in the middle of its samples, the delimiter well between words."""
    count = (len(said.pcm) - FIELD) // HOP + 1
    middles = HOP * np.arange(count) + FIELD / 2
    targets = np.full(count, BLANK)
    for (_, end), (start, _) in zip(said.times, said.times[1:], strict=False):
        edge = RATE * 40 / 1000
        targets[(middles > end * RATE / 1000 + edge) & (middles < start * RATE / 1000 - edge)] = DELIMITER
    for letter, first, last in said.letters:
        targets[(middles >= first) & (middles < last)] = VOCABULARY.index(letter)
    return [int(target) for target in targets]


def batch(said: list[Utterance]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, mask, frame targets and labels, each padded to the longest."""
    samples = [torch.from_numpy((one.pcm - one.pcm.mean()) / np.sqrt(one.pcm.var() + 1e-7)).float() for one in said]
    labels = [torch.tensor([VOCABULARY.index(letter) for letter in "|".join(one.words)]) for one in said]
    frames = [torch.tensor(frame_targets(one)) for one in said]

    def pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    mask = pad([torch.ones(len(row), dtype=torch.long) for row in samples], 0)
    return pad(samples, 0), mask, pad(frames, NO_FRAME), pad(labels, NO_FRAME)


def train(model: Any) -> None:
    """Fit the model, in place."""
    rng = np.random.default_rng(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE_OF_LEARNING, total_steps=STEPS, pct_start=0.15)
    began = time.monotonic()
    for step in range(STEPS):
        words = int(np.exp(rng.uniform(0, np.log(LONGEST + 1))))
        count = max(1, SECONDS_A_STEP // (words + 1))
        seeds = [int(seed) for seed in rng.integers(HELD_OUT, size=count)]
        samples, mask, frames, labels = batch([utterance(seed, some_words(seed, words)) for seed in seeds])
        found = model(samples, attention_mask=mask, labels=labels)
        of_frames = functional.cross_entropy(found.logits.transpose(1, 2), frames, ignore_index=NO_FRAME)
        loss = of_frames + CTC_SHARE * found.loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        plan.step()
        if step % 25 == 24:
            passed = time.monotonic() - began
            say(f"step {step + 1:4}  {passed:4.0f} s  frames {of_frames:.4f}  ctc {found.loss:.4f}")


def accuracy(model: Any, count: int = 40) -> tuple[float, float]:
    """Shares of frames, and of utterances as a whole by greedy decoding, that are right in held-out audio.

    Delimiters in the silence around an utterance are no mistakes: whether a word is near is not to be heard there.
    """
    right, total, whole = 0, 0, 0
    for seed in range(HELD_OUT, HELD_OUT + count):
        said = utterance(seed, some_words(seed, 1 + seed % LONGEST))
        samples, _, frames, _ = batch([said])
        with torch.inference_mode():
            best = model(samples).logits[0].argmax(-1)
        right += int((best == frames[0]).sum())
        total += len(best)
        tokens = [int(token) for token in torch.unique_consecutive(best) if token != BLANK]
        whole += "".join(VOCABULARY[token] for token in tokens).strip("|") == "|".join(said.words)
    return right / total, whole / count


def save(model: Any, folder: Path) -> None:
    """Write what transformers writes, and the sums of it."""
    model.save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}), encoding="utf-8")
    tokenizer: Any = Wav2Vec2CTCTokenizer  # transformers has no types
    extractor: Any = Wav2Vec2FeatureExtractor
    tokenizer(vocabulary).save_pretrained(folder)
    extractor(return_attention_mask=True).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # weights are written for their owner alone
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    say(f"{sum(path.stat().st_size for path in folder.iterdir())} bytes in {folder}")


def main(folder: Path) -> None:
    """Train, measure and save."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model: Any = Wav2Vec2ForCTC(CONFIG)
    say(f"{sum(weight.numel() for weight in model.parameters())} weights")
    train(model.train())
    frames, whole = accuracy(model.eval())
    say(f"held out: {frames:.2%} of frames, {whole:.1%} of utterances without a mistake")
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
