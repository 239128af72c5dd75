"""`whisper:FOLDER` and `whisper:FILE.pt`: word times from the cross-attention of a Whisper model."""
