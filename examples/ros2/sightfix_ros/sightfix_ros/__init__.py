"""A camera's position from a sightfix server, for ROS 2. Only `node` imports ROS."""
