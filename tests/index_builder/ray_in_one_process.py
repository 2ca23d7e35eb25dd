"""What sightfix uses of Ray, in this process: no cluster, one actor, rows one after another."""

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any


class _Rows:
    """A data set of Ray."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def map_batches(
        self, actor: Callable[..., Any], *, fn_constructor_args: tuple[Any, ...], batch_size: int, **_: Any
    ) -> "_Rows":
        assert batch_size == 1
        made = actor(*fn_constructor_args)
        results = [made({name: [value] for name, value in row.items()}) for row in self._rows]
        return _Rows([{name: values[0] for name, values in result.items()} for result in results])

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def modules() -> dict[str, ModuleType]:
    """`ray`, `ray.data` and `ray.exceptions`, for `sys.modules`."""
    ray, data, exceptions = ModuleType("ray"), ModuleType("ray.data"), ModuleType("ray.exceptions")
    context = SimpleNamespace(execution_options=SimpleNamespace())
    data.DataContext = SimpleNamespace(get_current=lambda: context)  # type: ignore[attr-defined]
    data.from_items = lambda rows, **_: _Rows(rows)  # type: ignore[attr-defined]
    exceptions.RayError = type("RayError", (Exception,), {})  # type: ignore[attr-defined]
    vars(ray).update(
        data=data,
        exceptions=exceptions,
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 2.0},
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}],
        put=lambda value: value,
        get=lambda value: value,
    )
    return {"ray": ray, "ray.data": data, "ray.exceptions": exceptions}
