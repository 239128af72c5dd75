"""The Python client of align-server."""
