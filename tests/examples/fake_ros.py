"""As much of rclpy and sensor_msgs as the node uses, by the names and defaults of ROS 2.

It is no ROS: that the node runs under a real one is not shown by tests with it.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass
class Stamp:
    sec: int = 0
    nanosec: int = 0


@dataclass
class Header:
    stamp: Stamp = field(default_factory=Stamp)
    frame_id: str = ""


@dataclass
class NavSatStatus:
    STATUS_NO_FIX = -1
    STATUS_FIX = 0
    status: int = -2
    service: int = 0


@dataclass
class NavSatFix:
    COVARIANCE_TYPE_UNKNOWN = 0
    COVARIANCE_TYPE_APPROXIMATED = 1
    header: Header = field(default_factory=Header)
    status: NavSatStatus = field(default_factory=NavSatStatus)
    latitude: float = 0.0
    longitude: float = 0.0
    altitude: float = 0.0
    position_covariance: Any = field(default_factory=lambda: [0.0] * 9)
    position_covariance_type: int = 0


@dataclass
class CompressedImage:
    header: Header = field(default_factory=Header)
    format: str = ""
    data: Any = b""


@dataclass
class Image:
    header: Header = field(default_factory=Header)
    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: Any = b""


@dataclass
class Parameter:
    value: Any


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def warning(self, message: str, *, throttle_duration_sec: float) -> None:
        self.lines.append(("warning", message))

    def error(self, message: str, *, throttle_duration_sec: float) -> None:
        self.lines.append(("error", message))


class Publisher:
    def __init__(self) -> None:
        self.published: list[Any] = []

    def publish(self, message: Any) -> None:
        self.published.append(message)


class Node:
    """Overrides are what `--ros-args -p name:=value` would give."""

    overrides: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self.logger = Logger()
        self.parameters: dict[str, Any] = {}
        self.publishers_by_topic: dict[str, Publisher] = {}
        self.subscriptions_by_topic: dict[str, tuple[type, Callable[[Any], Any]]] = {}
        self.destroyed = False

    def declare_parameter(self, name: str, value: Any) -> None:
        given = self.overrides.get(name, value)
        assert type(given) is type(value), f"parameter {name} would be refused: {given!r} for {value!r}"
        self.parameters[name] = given

    def get_parameter(self, name: str) -> Parameter:
        return Parameter(self.parameters[name])

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        assert kind is NavSatFix
        return self.publishers_by_topic.setdefault(topic, Publisher())

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], Any], profile: Any) -> None:
        self.subscriptions_by_topic[topic] = (kind, callback)

    def get_logger(self) -> Logger:
        return self.logger

    def destroy_node(self) -> None:
        self.destroyed = True


class ExternalShutdownException(Exception):  # noqa: N818
    pass


def modules() -> dict[str, types.ModuleType]:
    """What `sys.modules` would hold."""
    contents: dict[str, dict[str, Any]] = {
        "rclpy": {"init": lambda: None, "spin": lambda node: None, "try_shutdown": lambda: None},
        "rclpy.executors": {"ExternalShutdownException": ExternalShutdownException},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "sensor_msgs": {},
        "sensor_msgs.msg": {kind.__name__: kind for kind in (CompressedImage, Image, NavSatFix, NavSatStatus)},
    }
    made = {}
    for name, content in contents.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(content)
    return made
