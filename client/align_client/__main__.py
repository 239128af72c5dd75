"""`python -m align_client` is `align-client`."""

from align_client.cli import main

main(prog_name="align-client")
