"""`make proto`: Python code and type stubs from service/grpc/proto, the same bytes each time.

protoc names Python modules after the files' place below proto/, `sightfix.v1`, which is another package of ours. So the
modules are moved here and their imports of each other with them; the names that travel over the wire stay.
"""

import argparse
import re
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from retrieval.errors import SightfixError

HERE: Final = Path(__file__).parent
PROTO: Final = HERE / "proto"
GENERATED: Final = HERE / "generated"
_PACKAGE: Final = "sightfix/v1"
_INIT: Final = '"""Made by `make proto` from service/grpc/proto; do not edit."""\n'
_IMPORT: Final = re.compile(r"^from sightfix\.v1 import ", re.MULTILINE)


class ProtoError(SightfixError):
    """The protos cannot be compiled."""

    default_code = "proto"


def proto_files() -> list[str]:
    """The protos as protoc names them."""
    return sorted(f"{_PACKAGE}/{path.name}" for path in (PROTO / _PACKAGE).glob("*.proto"))


def generated_files() -> dict[str, bytes]:
    """What the generated folder must hold: file name → content.

    Raises:
        ProtoError: protoc refuses; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        scripts = Path(sys.executable).parent
        _protoc(
            f"--python_out={folder}",
            f"--grpc_python_out={folder}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--mypy_out={folder}",
            f"--mypy_grpc_out={folder}",
        )
        made = {path.name: _moved(path.read_text()) for path in (Path(folder) / _PACKAGE).iterdir()}
    return {"__init__.py": _INIT.encode(), **made}


def descriptor_set() -> bytes:
    """The protos and what they import as a FileDescriptorSet with comments, for `buf lint`.

    Raises:
        ProtoError: protoc refuses; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        _protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        return image.read_bytes()


def _protoc(*options: str) -> None:
    # Of the dev extra: whoever only serves does not have it.
    from grpc_tools import protoc

    # google/rpc/status.proto comes with googleapis-common-protos, google/protobuf/timestamp.proto with grpcio-tools.
    includes = (
        PROTO,
        distribution("googleapis-common-protos").locate_file(""),
        distribution("grpcio-tools").locate_file("grpc_tools/_proto"),
    )
    status = protoc.main(["protoc", *(f"-I{path}" for path in includes), *options, *proto_files()])
    if status != 0:
        raise ProtoError("the protos cannot be compiled", where=str(PROTO), remedy="See what protoc has written")


def _moved(text: str) -> bytes:
    return _IMPORT.sub("from service.grpc.generated import ", text).encode()


def main() -> None:
    """Write the generated code, or the descriptor set to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--descriptor-set", action="store_true", help="write the descriptor set to standard output")
    if parser.parse_args().descriptor_set:
        sys.stdout.buffer.write(descriptor_set())
        return
    made = generated_files()
    GENERATED.mkdir(exist_ok=True)
    for path in GENERATED.iterdir():
        if path.is_file() and path.name not in made:
            path.unlink()
    for name, content in made.items():
        (GENERATED / name).write_bytes(content)


if __name__ == "__main__":
    main()
