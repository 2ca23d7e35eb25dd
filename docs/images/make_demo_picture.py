"""Draw docs/images/demo.png: a query of the toy town, its best matches, and the fix on the map.

python docs/images/make_demo_picture.py demo-town      # after `make demo`
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from retrieval.describer import Describer
from retrieval.geo import Position, to_local_metres
from retrieval.index.folder import find_index
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.localizer import Localizer
from retrieval.references import open_references
from service.answer import answer_of
from sightfix.demo import INDEX_NAME, true_distance_m
from sightfix.toy_town import ToyTown, town_for

GAP, CAPTION, THUMB = 14, 30, (272, 204)
MAP_WIDTH, MARGIN_M, OVERSAMPLING = 560, 12.0, 3
STREET, HOUSES, PARK = (255, 255, 255), (214, 202, 186), (184, 214, 164)
REFERENCE, TRUTH, FIX = (120, 140, 160), (0, 114, 178), (213, 94, 0)


def main(folder: Path) -> None:
    """Localize the demo's query and draw the answer."""
    town = town_for(300)
    queries = list(open_references(f"csv:{folder / 'queries.csv'}"))
    query = queries[len(queries) // 3]
    index = PlaceIndex.open(find_index(folder / "indexes", INDEX_NAME))
    localizer = Localizer(Describer(index.open_bundle()), index)
    answer = answer_of(localizer.localize_file(query.path))
    assert answer.fix is not None
    assert query.position is not None
    references = list(open_references(f"csv:{folder / 'references.csv'}"))
    fix = Position(answer.fix.lat, answer.fix.lon)
    height = 2 * (THUMB[1] + CAPTION) + GAP
    plan = _draw_map(
        town,
        [reference.position for reference in references if reference.position],
        query.position,
        fix,
        answer.fix.radius_m,
    )
    plan = plan.resize((round(plan.width * (height - CAPTION) / plan.height), height - CAPTION))
    picture = Image.new("RGB", (2 * THUMB[0] + plan.width + 4 * GAP, height + 2 * GAP), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    tiles = [(query.path, "the query")]
    tiles += [
        (folder / match.reference_id, f"match {match.rank}, score {match.score:.2f}") for match in answer.matches[:3]
    ]
    for place, (path, caption) in enumerate(tiles):
        x = GAP + place % 2 * (THUMB[0] + GAP)
        y = GAP + place // 2 * (THUMB[1] + CAPTION + GAP)
        with Image.open(path) as photo:
            picture.paste(photo.convert("RGB").resize(THUMB), (x, y))
        pen.text((x, y + THUMB[1] + 5), caption, fill=(40, 40, 40), font_size=17)
    x = 2 * THUMB[0] + 3 * GAP
    picture.paste(plan, (x, GAP))
    away = true_distance_m(answer, query.position)
    caption = f"blue: taken here   orange: the fix, {away:.0f} m away   dots: references"
    pen.text((x, GAP + plan.height + 5), caption, fill=(40, 40, 40), font_size=17)
    picture.quantize(128).save(Path(__file__).parent / "demo.png", optimize=True)


def _draw_map(
    town: ToyTown, references: Sequence[Position], truth: Position, fix: Position, radius_m: float
) -> Image.Image:
    """The town from above, north up: references as dots, the truth as a blue dot, the fix as an orange ring."""
    scale = MAP_WIDTH * OVERSAMPLING / (town.size_m[0] + 2 * MARGIN_M)
    size = (MAP_WIDTH * OVERSAMPLING, round((town.size_m[1] + 2 * MARGIN_M) * scale))
    picture = Image.new("RGB", size, HOUSES)
    pen = ImageDraw.Draw(picture)

    def pixel(east: float, north: float) -> tuple[float, float]:
        return (east + MARGIN_M) * scale, size[1] - (north + MARGIN_M) * scale

    def circle(position: Position, radius_px: float, colour: tuple[int, int, int], line_px: int | None = None) -> None:
        (east, north), = to_local_metres(town.origin, [position.lat], [position.lon])  # fmt: skip
        x, y = pixel(float(east), float(north))
        frame = (x - radius_px, y - radius_px, x + radius_px, y + radius_px)
        if line_px is None:
            pen.ellipse(frame, fill=colour)
        else:
            pen.ellipse(frame, outline=colour, width=line_px)

    (left, bottom), (right, top) = pixel(0, 0), pixel(*town.size_m)
    pen.rectangle((left, top, right, bottom), fill=STREET)
    for block in town.blocks:
        (left, bottom), (right, top) = pixel(block.west, block.south), pixel(block.east, block.north)
        pen.rectangle((left, top, right, bottom), fill=PARK if block.park else HOUSES)
    for reference in references:
        circle(reference, 5, REFERENCE)
    circle(fix, radius_m * scale, FIX, 4)
    circle(fix, 22, FIX, 7)
    circle(truth, 12, TRUTH)
    pen.rectangle((12, size[1] - 21, 12 + 50 * scale, size[1] - 12), fill=(40, 40, 40))
    pen.text((12, size[1] - 63), "50 m", fill=(40, 40, 40), font_size=33)
    return picture.resize((MAP_WIDTH, math.ceil(size[1] / OVERSAMPLING)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
