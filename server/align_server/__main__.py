"""`python -m align_server` is `align-server`."""

from align_server.cli import main

main(prog_name="align-server")
