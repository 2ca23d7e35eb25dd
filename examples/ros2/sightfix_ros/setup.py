"""How colcon builds and installs the package."""

from setuptools import setup

setup(
    name="sightfix_ros",
    version="0.1.0",
    description="Publishes where a camera is as sensor_msgs/NavSatFix, asked of a sightfix server.",
    license="Apache-2.0",
    packages=["sightfix_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/sightfix_ros"]),
        ("share/sightfix_ros", ["package.xml"]),
        ("share/sightfix_ros/launch", ["launch/sightfix.launch.py"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": ["sightfix_node = sightfix_ros.node:main"]},
)
