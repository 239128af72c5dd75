"""Lossless CHAT: bytes in, bytes out, only time bullets and %wor lines change."""

from align_client.chat.document import Document, Media, NotChatError, Problem, Utterance, UtteranceTimes
from align_client.chat.wor import Bullet, WordTime, WorWord
from align_client.chat.words import Item, ItemKind

__all__ = [
    "Bullet",
    "Document",
    "Item",
    "ItemKind",
    "Media",
    "NotChatError",
    "Problem",
    "Utterance",
    "UtteranceTimes",
    "WorWord",
    "WordTime",
]
