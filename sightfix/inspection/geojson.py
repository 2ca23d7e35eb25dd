"""A reference database as GeoJSON (RFC 7946), for QGIS, geojson.io and other maps."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from retrieval.errors import StorageError
from retrieval.references.reference import Reference


def write_geojson(references: Iterable[Reference], path: Path) -> int:
    """Write one point a reference, row by row; references without a position get no geometry, as the RFC has it.

    The file appears when it is complete.

    Returns:
        How many references were written.

    Raises:
        StorageError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [\n')
            for reference in references:
                file.write(",\n" if count else "")
                json.dump(_feature(reference), file, ensure_ascii=False)
                count += 1
            file.write("\n]}\n")
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"the map cannot be written ({error.strerror})", where=str(path), remedy="Give a file in a writable folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return count


def _feature(reference: Reference) -> dict[str, object]:
    position = reference.position
    geometry = None
    if position is not None:
        altitude = [] if reference.altitude_m is None else [reference.altitude_m]
        geometry = {"type": "Point", "coordinates": [position.lon, position.lat, *altitude]}
    properties = {
        "path": str(reference.path),
        "heading": reference.heading_deg,
        "captured_at": reference.captured_at.isoformat() if reference.captured_at else None,
        "session": reference.session,
    }
    return {"type": "Feature", "id": reference.id, "geometry": geometry, "properties": properties}
