"""What the API's description says about a GeoPose request; the protocol's authors give TypeScript interfaces only."""

from typing import Any, Final

_NUMBER: Final = {"type": ["number", "null"]}
_CAMERA: Final[dict[str, Any]] = {
    "sequenceNumber": {"type": "integer"},
    "imageFormat": {"type": "string", "description": "RGBA32, GRAY8, DEPTH or JPG; the bytes decide"},
    "size": {"type": "array", "items": {"type": "number"}, "description": "Width and height, pixels"},
    "imageBytes": {"type": "string", "description": "A photo, or raw pixels of that format and size, as base64"},
    "imageOrientation": {
        "type": "object",
        "properties": {
            "mirrored": {"type": "boolean"},
            "rotation": {"type": "number", "description": "Clockwise turn that makes the image upright, degrees"},
        },
    },
}
_GEOLOCATION: Final[dict[str, Any]] = {
    **dict.fromkeys(("latitude", "longitude", "altitude", "altitudeAccuracy", "heading", "speed"), _NUMBER),
    "accuracy": {**_NUMBER, "description": "Metres; 0 or null is unknown, else it bounds the answer"},
}
_ANY_READING: Final[dict[str, Any]] = {"timestamp": {}, "sensorId": {"type": "string"}, "privacy": {"type": "object"}}


def _readings(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": ["array", "null"],
        "items": {"type": "object", "properties": {**_ANY_READING, **properties}, "required": required},
    }


_VERSION_1: Final[dict[str, Any]] = {
    "title": "Version 1",
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            **_ANY_READING,
            "reading": {"type": "object", "properties": {**_CAMERA, **_GEOLOCATION}},
        },
    },
}
_VERSION_2: Final[dict[str, Any]] = {
    "title": "Version 2",
    "type": "object",
    "properties": {
        "cameraReadings": _readings(_CAMERA, ["imageBytes"]),
        "geolocationReadings": _readings(_GEOLOCATION, []),
    },
}

REQUEST_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "sensorReadings"],
    "properties": {
        "id": {"type": "string", "description": "Comes back in the answer"},
        "timestamp": {"type": ["number", "string", "null"], "description": "Unix milliseconds"},
        "type": {"type": "string", "examples": ["geopose"]},
        "sensors": {"type": "array", "items": {"type": "object"}},
        "sensorReadings": {"oneOf": [_VERSION_2, _VERSION_1]},
        "priorPoses": {"type": "array", "items": {"type": "object"}},
    },
}
