"""The checked-in code is what `make proto` makes, and the protos keep the rules."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from service.grpc.make_generated import GENERATED, PROTO, descriptor_set, generated_files

BUF = Path(sys.executable).parent / "buf"
LINT = [str(BUF), "lint", "-#format=binpb", "--config", str(PROTO / "buf.yaml"), "--path", "sightfix"]


@pytest.fixture(scope="module")
def image() -> bytes:
    return descriptor_set()


def test_the_generated_code_is_up_to_date() -> None:
    there = {path.name: path.read_bytes() for path in GENERATED.iterdir() if path.is_file()}
    made = generated_files()
    assert set(there) == set(made), "run: make proto"
    assert [name for name in made if made[name] != there[name]] == [], "run: make proto"


def test_the_protos_are_clean(image: bytes) -> None:
    done = subprocess.run(LINT, input=image, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_rules_are_enforced(image: bytes) -> None:
    """A field in camel case, and one without a comment, are found."""
    files = FileDescriptorSet.FromString(image)
    (proto,) = (file for file in files.file if file.name == "sightfix/v1/localization.proto")
    proto.message_type[0].field[0].name = "topK"
    (location,) = (at for at in proto.source_code_info.location if list(at.path) == [4, 0, 2, 1])
    location.ClearField("leading_comments")
    done = subprocess.run(LINT, input=files.SerializeToString(), capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert b"lower_snake_case" in done.stdout
    assert b"comment" in done.stdout
