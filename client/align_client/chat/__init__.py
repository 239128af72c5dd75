"""Lossless CHAT: bytes in, bytes out, only time bullets and %wor lines change."""
