"""--provider, --precision, --threads and --allow-cpu-fallback, the same on every command."""

import json
import logging

import onnxruntime
import pytest
from typer.testing import CliRunner, Result

from retrieval.bundle import Bundle
from retrieval.errors import BundleError, ParameterError, ProviderUnavailableError
from sightfix.cli import app
from sightfix.commands.options import make_describer
from tests.conftest import PublishedPlaces

without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROVIDER", "PRECISION", "THREADS", "ALLOW_CPU_FALLBACK"):
        monkeypatch.delenv(f"SIGHTFIX_{name}", raising=False)


def localize(published: PublishedPlaces, *options: str) -> Result:
    photo = published.places.rows[3].path
    arguments = ["localize", str(photo), "--indexes", str(published.indexes), "--json", *options]
    return CliRunner().invoke(app, arguments)


def provider_of(result: Result) -> str:
    answer = json.loads(result.stdout)
    assert answer["matches"][0]["reference_id"] == "photos/0003.jpg"
    provider: str = answer["model"]["provider"]
    return provider


def test_the_provider_that_is_asked_for_answers(published: PublishedPlaces) -> None:
    assert provider_of(localize(published, "--provider", "openvino", "--threads", "1")) == "openvino"


def test_a_variable_holds_until_a_flag_says_otherwise(
    published: PublishedPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTFIX_PROVIDER", "openvino")
    assert provider_of(localize(published)) == "openvino"
    assert provider_of(localize(published, "--provider", "cpu")) == "cpu"


@without_gpu
def test_a_missing_provider_is_an_error_unless_the_cpu_may_take_its_place(
    published: PublishedPlaces, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(localize(published, "--provider", "cuda").exception, ProviderUnavailableError)
    result = localize(published, "--provider", "cuda", "--allow-cpu-fallback")
    assert provider_of(result) == "cpu"
    assert logging.WARNING in {record.levelno for record in caplog.records if record.name == "sightfix.engines"}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (("--provider", "gpu"), ParameterError, "the provider 'gpu' is unknown. Choose auto"),
        (("--precision", "fp8"), ParameterError, "--precision 'fp8' is unknown. Choose among fp32, fp16, int8"),
        (("--precision", "fp16"), BundleError, "the bundle has no fp16 graph. Choose among fp32"),
    ],
)
def test_an_unknown_value_is_told_the_choices(
    published: PublishedPlaces, options: tuple[str, str], error: type[Exception], text: str
) -> None:
    caught = localize(published, *options).exception
    assert isinstance(caught, error)
    assert text in str(caught)


@pytest.mark.parametrize("command", ["serve", "index build", "localize", "evaluate"])
def test_every_command_that_describes_has_the_options(command: str) -> None:
    text = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--provider", "--precision", "--threads", "--allow-cpu-fallback"):
        assert option in text


@without_gpu
def test_left_out_means_the_best_there_is(bundle: Bundle) -> None:
    describer = make_describer(bundle, None, None, 1, None)
    assert (describer.provider, describer.precision) == ("cpu", "fp32")
    assert len(describer.passed_over) == 2
