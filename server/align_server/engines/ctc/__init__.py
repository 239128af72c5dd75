"""`ctc:FOLDER`: word times from any wav2vec2-family CTC checkpoint in a local folder."""
