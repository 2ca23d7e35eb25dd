"""The node: images in, sensor_msgs/NavSatFix out."""

import math
import os
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, NavSatFix, NavSatStatus

from sightfix_ros.fixes import FixRules, Position, position_of, prior_of
from sightfix_ros.images import UnsupportedEncodingError, jpeg_of_pixels, shrunk
from sightfix_ros.one_at_a_time import OneAtATime
from sightfix_ros.server import NotLocalizedError, Server

# Every parameter and its default; the README says what they mean.
PARAMETERS = {
    "url": "http://127.0.0.1:8080",
    "api_key_env": "SIGHTFIX_API_KEY",
    "image_topic": "image_raw/compressed",
    "compressed": True,
    "fix_topic": "fix",
    "frame_id": "",
    "max_rate_hz": 5.0,
    "deadline_ms": 1000,
    "shrink": True,
    "ambiguous_is_fix": False,
    "min_confidence": 0.0,
    "min_radius_m": 5.0,
    "altitude_m": math.nan,
    "gps_topic": "",
    "gps_max_age_s": 10.0,
    "gps_min_radius_m": 200.0,
}

_QUIET_S = 10.0


class SightfixNode(Node):
    """Asks a sightfix server where each frame was taken, one at a time; callbacks return at once."""

    def __init__(self) -> None:
        super().__init__("sightfix")
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        self._server = Server(
            self._parameter("url"),
            os.environ.get(self._parameter("api_key_env")),
            1.0 + self._parameter("deadline_ms") / 1e3,
        )
        self._rules = FixRules(
            self._parameter("ambiguous_is_fix"), self._parameter("min_confidence"), self._parameter("min_radius_m")
        )
        self._sees: dict | None = None
        self._gps: NavSatFix | None = None
        self._publisher = self.create_publisher(NavSatFix, self._parameter("fix_topic"), 10)
        self._worker: OneAtATime[Any] = OneAtATime(self._work, self._parameter("max_rate_hz"))
        kind = CompressedImage if self._parameter("compressed") else Image
        self.create_subscription(kind, self._parameter("image_topic"), self._worker.offer, qos_profile_sensor_data)
        if self._parameter("gps_topic"):
            self.create_subscription(NavSatFix, self._parameter("gps_topic"), self._on_gps, qos_profile_sensor_data)

    def destroy_node(self) -> None:
        """Finish the current frame, then stop."""
        self._worker.stop()
        super().destroy_node()

    def _parameter(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _on_gps(self, message: NavSatFix) -> None:
        self._gps = message

    def _work(self, message: Any) -> float:
        """Localize one frame and publish; returns for how long the server wants to be left alone, seconds."""
        try:
            photo = self._photo_of(message)
            answer = self._server.localize(
                photo, prior=self._prior(message), deadline_ms=self._parameter("deadline_ms")
            )
        except NotLocalizedError as failure:
            self.get_logger().warning(str(failure), throttle_duration_sec=_QUIET_S)
            return failure.retry_after_s
        except (UnsupportedEncodingError, OSError) as error:
            self.get_logger().error(f"the frame cannot be read: {error}", throttle_duration_sec=_QUIET_S)
            return 0.0
        except Exception as error:  # the thread must live on for the next frame
            self.get_logger().error(f"{type(error).__name__}: {error}", throttle_duration_sec=_QUIET_S)
            return 0.0
        self._publisher.publish(self._message(message, position_of(answer, self._rules)))
        return 0.0

    def _photo_of(self, message: Any) -> bytes:
        if self._parameter("compressed"):
            photo = bytes(message.data)
        else:
            photo = jpeg_of_pixels(
                message.data,
                height=message.height,
                width=message.width,
                step=message.step,
                encoding=message.encoding,
            )
        if not self._parameter("shrink"):
            return photo
        if self._sees is None:
            self._sees = self._server.info().get("preprocessing", {})
        return shrunk(photo, self._sees or None)

    def _prior(self, message: Any) -> str | None:
        gps = self._gps
        if gps is None or gps.status.status < NavSatStatus.STATUS_FIX:
            return None
        if abs(_seconds(message.header.stamp) - _seconds(gps.header.stamp)) > self._parameter("gps_max_age_s"):
            return None
        known = gps.position_covariance_type != NavSatFix.COVARIANCE_TYPE_UNKNOWN
        variance = max(gps.position_covariance[0], gps.position_covariance[4]) if known else None
        return prior_of(gps.latitude, gps.longitude, variance, self._parameter("gps_min_radius_m"))

    def _message(self, image: Any, position: Position | None) -> NavSatFix:
        """What is published: with the stamp of the image, for the camera was there then."""
        message = NavSatFix()
        message.header.stamp = image.header.stamp
        message.header.frame_id = self._parameter("frame_id") or image.header.frame_id
        message.altitude = float(self._parameter("altitude_m"))
        if position is None:
            message.status.status = NavSatStatus.STATUS_NO_FIX
            message.latitude = message.longitude = math.nan
            message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_UNKNOWN
            return message
        message.status.status = NavSatStatus.STATUS_FIX
        message.latitude, message.longitude = position.lat, position.lon
        message.position_covariance = position.covariance
        message.position_covariance_type = NavSatFix.COVARIANCE_TYPE_APPROXIMATED
        return message


def _seconds(stamp: Any) -> float:
    return float(stamp.sec) + stamp.nanosec * 1e-9


def main() -> None:
    """Run the node until it is told to stop."""
    rclpy.init()
    node = SightfixNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
