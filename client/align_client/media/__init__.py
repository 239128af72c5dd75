"""Finding a transcript's recording and streaming its audio."""
