"""Talking to align-server from Python."""
