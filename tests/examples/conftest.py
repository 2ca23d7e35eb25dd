"""The ROS 2 package on the path, as colcon would install it."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "ros2" / "sightfix_ros"))
