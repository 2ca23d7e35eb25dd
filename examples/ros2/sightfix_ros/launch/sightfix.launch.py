"""Start the node: ``ros2 launch sightfix_ros sightfix.launch.py url:=http://robot-server:8080``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = (
    ("url", "http://127.0.0.1:8080", "The sightfix server", str),
    ("image_topic", "image_raw/compressed", "The camera", str),
    ("compressed", "true", "Whether it is sensor_msgs/CompressedImage, else Image", bool),
    ("fix_topic", "fix", "Where to publish sensor_msgs/NavSatFix", str),
    ("max_rate_hz", "5.0", "No more frames a second than this", float),
    ("gps_topic", "", "A NavSatFix to search around; none if empty", str),
)


def generate_launch_description() -> LaunchDescription:
    """The node and what may be chosen."""
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text, _ in ARGUMENTS
    ]
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, _, _, kind in ARGUMENTS}
    node = Node(package="sightfix_ros", executable="sightfix_node", parameters=[parameters], output="screen")
    return LaunchDescription([*declared, node])
