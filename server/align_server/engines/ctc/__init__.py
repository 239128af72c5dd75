"""Word times from CTC models: `ctc:FOLDER`, any wav2vec2-family checkpoint on disk, and `mms-fa`, torchaudio's."""
