"""The door: who may come in, how long a request may take to arrive, and what becomes of every call.

It wraps the methods once, when they are registered. An interceptor would do the same at every call, for a tenth of a
millisecond.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from service.api_keys import KeyRing
from service.api_keys import Scope as KeyScope
from service.grpc.calls import Calls
from service.key_guard import check_key, presented_key
from service.problems import RequestError

if TYPE_CHECKING:
    from service.grpc.calls import Context

Answer = Callable[[Any, "Context"], Awaitable[Message]]
Answers = Callable[[AsyncIterator[Any], "Context"], AsyncGenerator[Message, None]]


class Door:
    """Stands before every call of our services. Health and reflection need none: probes cannot hold keys, and protos
    are public.

    A call that is not let in is refused before anything of its message is read.

    Args:
        calls: watches the calls.
        keys: who may come in; None lets everybody in.
        read_timeout_s: how long the message of a call may take to arrive. Frames of a stream may take their time.
    """

    def __init__(self, calls: Calls, keys: KeyRing | None, read_timeout_s: float) -> None:
        self._calls = calls
        self._keys = keys
        self._read_timeout_s = read_timeout_s

    def add(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, scope: KeyScope) -> None:
        """Serve a service behind the door.

        Args:
            server: that is not started yet.
            service: what there is to serve.
            servicer: has a method for each of the service's.
            scope: what a key must allow.
        """
        handlers = {
            method.name: self._streaming(method, getattr(servicer, method.name), scope)
            if method.client_streaming
            else self._single(method, getattr(servicer, method.name), scope)
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def _single(self, method: MethodDescriptor, answer: Answer, scope: KeyScope) -> "grpc.RpcMethodHandler[Any, Any]":
        name = _full_name(method)

        async def watched(_: object, context: "Context") -> Message:
            async with self._calls.begin(context, name) as call:
                self._check(context, scope)
                request = await self._read(context)
                call.name(getattr(request, "request_id", ""))
                return await answer(request, context)

        # As if the requests were a stream: gRPC reads a single message before it asks the handler.
        return grpc.stream_unary_rpc_method_handler(watched, *_codec(method))

    def _streaming(
        self, method: MethodDescriptor, answers: Answers, scope: KeyScope
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        name = _full_name(method)

        async def watched(requests: AsyncIterator[Any], context: "Context") -> None:
            async with self._calls.begin(context, name):
                self._check(context, scope)
                # Closed at once when writing fails, not when somebody collects the garbage.
                async with contextlib.aclosing(answers(requests, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return grpc.stream_stream_rpc_method_handler(watched, *_codec(method))

    def _check(self, context: "Context", scope: KeyScope) -> None:
        if self._keys is None:
            return
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        check_key(self._keys, presented_key(metadata.get("authorization"), metadata.get("x-api-key")), scope)

    async def _read(self, context: "Context") -> Any:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                request = await context.read()
        except TimeoutError:
            raise RequestError(
                f"the request did not arrive within {self._read_timeout_s:g} s",
                code="request_timeout",
                remedy="Send a smaller photo, or use a better connection",
            ) from None
        if request is grpc.aio.EOF:
            raise RequestError("the call has no message", remedy="Send one")
        return request


def _full_name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def _codec(method: MethodDescriptor) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return GetMessageClass(method.input_type).FromString, GetMessageClass(method.output_type).SerializeToString
