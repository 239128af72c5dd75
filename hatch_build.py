"""Generates the Python code of the wire contract when a wheel, an sdist or an editable install is built."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CONTRACT = "align_proto/v1/align.proto"


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs grpcio-tools' protoc, which is a Python module: no compiler and no protoc on the PATH."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  the interface has both
        """Write align_pb2.py, align_pb2.pyi and align_pb2_grpc.py beside the contract."""
        from grpc_tools import protoc

        root = Path(self.root) / "proto"
        well_known = files("grpc_tools").joinpath("_proto")
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={root}",
                f"--proto_path={well_known}",
                f"--python_out={root}",
                f"--pyi_out={root}",
                f"--grpc_python_out={root}",
                CONTRACT,
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc failed on {CONTRACT} with status {status}")
