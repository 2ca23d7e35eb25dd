"""OpenTelemetry traces: one span a request, one for each stage of each photo. Nothing is imported while it is off.

The stages are written down when a photo is answered, from the times that were measured anyway: a photo crosses three
threads, and no span has to follow it.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from os import environ
from typing import TYPE_CHECKING, Final

from retrieval import __version__
from retrieval.errors import MissingExtraError, ParameterError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_FLUSH_LIMIT_S: Final = 5.0  # what an unreachable collector may cost when the server stops


class Tracing:
    """Makes the spans of one server.

    Args:
        provider: whose sampler decides and whose processors export; not the process's global one.
        processor: is flushed at the end, if given.
    """

    def __init__(self, provider: "TracerProvider", processor: "SpanProcessor | None" = None) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._tracer = provider.get_tracer("sightfix.service", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._processor = processor

    def begin(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> "Span":
        """Begin a request's span, as a child of the caller's if the headers carry a W3C ``traceparent``.

        Args:
            name: of the span.
            headers: of the request, or a gRPC call's metadata; names in lower case.
        """
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"tracestate")
        }
        context = self._propagator.extract(carrier) if carrier else None
        return self._tracer.start_span(name, context, kind=self._trace.SpanKind.SERVER)

    def stages(
        self, span: "Span", queued_at: float, seconds: Sequence[tuple[str, float]], attributes: Mapping[str, str]
    ) -> None:
        """Write down the stages of one photo, one after another.

        Args:
            span: of the request.
            queued_at: when decoding was done, on `time.perf_counter`.
            seconds: name and length of each stage; ``decode`` ends at `queued_at`, the others follow it.
            attributes: of every stage.
        """
        if not span.is_recording():
            return
        parent = self._trace.set_span_in_context(span)
        at = time.time_ns() - round((time.perf_counter() - queued_at) * 1e9)
        for name, length in seconds:
            length_ns = round(length * 1e9)
            begun = at - length_ns if name == "decode" else at
            stage = self._tracer.start_span(name, parent, start_time=begun, attributes=attributes)
            stage.end(begun + length_ns)
            at = begun + length_ns

    def end(self, span: "Span", name: str, attributes: Mapping[str, str | int], *, failed: bool) -> None:
        """End a request's span.

        Args:
            span: of the request.
            name: now that the route is known.
            attributes: of the request; never an image, a position or a header.
            failed: whether it was the server's fault.
        """
        if span.is_recording():
            span.update_name(name)
            span.set_attributes(attributes)
            if failed:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def stop(self) -> None:
        """Export what is left, but do not wait long for it."""
        if self._processor is not None:
            # It would wait for half a minute for a collector that is away.
            flushing = threading.Thread(target=self._processor.shutdown, name="flush", daemon=True)
            flushing.start()
            flushing.join(_FLUSH_LIMIT_S)


def trace_id_of(span: "Span") -> str | None:
    """32 hex digits, if the span is sampled."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid and context.trace_flags.sampled else None


def trace_response(span: "Span") -> str:
    """The header ``traceresponse`` of W3C Trace Context level 2, so that the caller finds its trace."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def configured_tracing(endpoint: str | None, variables: Mapping[str, str] = environ) -> Tracing | None:
    """Tracing as the settings and OpenTelemetry's standard variables define it; None if they do not enable it.

    Args:
        endpoint: of the collector, such as ``http://localhost:4318``; None leaves it to the variables.
        variables: the environment. The exporter and the sampler read it themselves.

    Raises:
        MissingExtraError: tracing is asked for and OpenTelemetry is not installed.
        ParameterError: another protocol than OTLP over HTTP is asked for.
    """
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    wanted = endpoint or any(variables.get(name) for name in (*_ENDPOINTS, "OTEL_TRACES_EXPORTER"))
    if not wanted:
        return None
    exporter = variables.get("OTEL_TRACES_EXPORTER", "otlp")
    protocols: set[str] = {variables[name] for name in _PROTOCOLS if variables.get(name)}
    if exporter != "otlp" or protocols - {"http/protobuf"}:
        raise ParameterError(
            "traces are exported as OTLP over HTTP, not as " + ", ".join((exporter, *sorted(protocols))),
            where="OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL",
            remedy="Set otlp and http/protobuf, and send to the collector's HTTP port (4318)",
        )
    return _open(endpoint, variables)


def _open(endpoint: str | None, variables: Mapping[str, str]) -> Tracing:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            f"traces are asked for, and {error.name} is not installed", remedy="pip install 'sightfix[tracing]'"
        ) from error
    resource = {"service.version": __version__}
    if "OTEL_SERVICE_NAME" not in variables and "service.name=" not in variables.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        resource["service.name"] = "sightfix"
    # atexit would wait for the collector a second time.
    provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    processor = BatchSpanProcessor(exporter)
    provider.add_span_processor(processor)
    return Tracing(provider, processor)
