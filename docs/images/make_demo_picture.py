"""Draw docs/images/demo.png: a query of the toy town, its best matches, and the fix on the map.

python docs/images/make_demo_picture.py demo-town      # after `make demo`
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.geo import Position
from retrieval.index.folder import find_index
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.localizer import Localizer
from retrieval.references import open_references
from sightfix.demo import INDEX_NAME, true_distance_m
from sightfix.toy_town import draw_town_map, town_for

GAP, CAPTION, THUMB = 14, 30, (272, 204)


def main(folder: Path) -> None:
    """Localize the demo's query and draw the answer."""
    town = town_for(300)
    queries = list(open_references(f"csv:{folder / 'queries.csv'}"))
    query = queries[len(queries) // 3]
    localizer = Localizer(Describer(open_bundle()), PlaceIndex.open(find_index(folder / "indexes", INDEX_NAME)))
    answer = localizer.localize_file(query.path)
    assert answer.fix is not None
    assert query.position is not None
    references = list(open_references(f"csv:{folder / 'references.csv'}"))
    fix = Position(answer.fix.lat, answer.fix.lon)
    height = 2 * (THUMB[1] + CAPTION) + GAP
    plan = draw_town_map(
        town,
        [reference.position for reference in references if reference.position],
        truth=query.position,
        fix=fix,
        radius_m=answer.fix.radius_m,
        width=560,
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
