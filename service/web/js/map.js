// The map: index, fix, matches and search circle on a metre grid, or on tiles if the server has a source of them.

import { el } from "./dom.js";
import { distanceM, longitudeNear } from "./geo.js";
import { MetreGrid } from "./grid.js";
import { MatchMarkers } from "./markers.js";

const L = globalThis.L;

/**
 * @typedef {import("./api.js").Answer} Answer
 * @typedef {import("./api.js").Bounds} Bounds
 * @typedef {{lat: number, lon: number, radius_m: number}} Prior
 * @typedef {{url: string, attribution: string, max_zoom: number}} Tiles
 */

export class PlaceMap {
  /**
   * @param {HTMLElement} container
   * @param {{onPoint: (rank: number | null) => void, onChoose: (rank: number) => void,
   *          onClick: (lat: number, lon: number) => void}} handlers
   */
  constructor(container, handlers) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const animated = { zoomAnimation: !still, fadeAnimation: !still, markerZoomAnimation: !still, inertia: !still };
    this._still = still;
    this._map = L.map(container, {
      attributionControl: false, minZoom: 2, maxZoom: 23, zoomSnap: 0.25, wheelPxPerZoomLevel: 90, ...animated,
    });
    this._map.setView([0, 0], 2, { animate: false });
    this._grid = new MetreGrid().addTo(this._map);
    L.control.scale({ imperial: false, maxWidth: 120 }).addTo(this._map);
    this._boundsLayer = L.layerGroup().addTo(this._map);
    this._fixLayer = L.layerGroup().addTo(this._map);
    this._priorLayer = L.layerGroup().addTo(this._map);
    this._markers = new MatchMarkers(this._map, handlers, (position) => this._place(position));
    /** @type {Bounds | null} */
    this._bounds = null;
    /** @type {Answer | null} */
    this._answer = null;
    /** The area to show until the user moves the map. @type {any} */
    this._fitted = null;
    this._map.on("click", (/** @type {any} */ event) => {
      const { lat, lng } = event.latlng.wrap();
      handlers.onClick(lat, lng);
    });
    for (const event of ["pointerdown", "wheel", "keydown"]) {
      container.addEventListener(event, () => (this._fitted = null), { passive: true });
    }
    new ResizeObserver(() => this._resized()).observe(container);
  }

  /** The centre of the view. */
  get centre() {
    const { lat, lng } = this._map.getCenter().wrap();
    return { lat, lon: lng };
  }

  /**
   * Lay tiles over the grid, which stays visible where they do not load.
   * @param {Tiles} tiles
   */
  showTiles(tiles) {
    const layer = L.tileLayer(tiles.url, {
      maxZoom: 23,
      maxNativeZoom: tiles.max_zoom,
      attribution: el("span", {}, tiles.attribution).innerHTML,
      // The page sends no referrer; a tile server may require one.
      referrerPolicy: "origin",
    });
    const container = this._map.getContainer();
    layer.on("tileload", () => container.classList.add("tiled"));
    // Between whole zoom levels browsers show seams.
    this._map.options.zoomSnap = 1;
    layer.addTo(this._map);
    L.control.attribution({ prefix: false }).addTo(this._map).addAttribution(layer.getAttribution());
  }

  /** @param {Bounds} bounds of the index */
  showIndex(bounds) {
    const same = this._bounds !== null && JSON.stringify(bounds) === JSON.stringify(this._bounds);
    if (same) return;
    const first = this._bounds === null;
    this._bounds = bounds;
    const box = this._indexBox();
    const middle = box.getCenter();
    this._grid.setOrigin(middle.lat, middle.lng);
    const edge = L.rectangle(box, { className: "index-bounds", interactive: false, weight: 1.5, fill: false });
    this._boundsLayer.clearLayers().addLayer(edge);
    if (first && this._answer === null) this.fitIndex();
  }

  /** @param {Answer | null} answer */
  showAnswer(answer) {
    this._answer = answer;
    this._fixLayer.clearLayers();
    this._markers.show(answer?.matches ?? []);
    if (answer === null) return;
    if (answer.fix !== null) {
      const at = this._place(answer.fix);
      const icon = L.divIcon({ className: "fix-marker", html: el("span", { class: "fix-sign" }), iconSize: [44, 44] });
      const radius = { radius: answer.fix.radius_m, className: "fix-radius", interactive: false, weight: 2 };
      this._fixLayer.addLayer(L.circle(at, radius));
      // Open in its middle, where the best match often is.
      this._fixLayer.addLayer(L.marker(at, { icon, interactive: false, keyboard: false, zIndexOffset: 4e5 }));
    }
    this.fitFix();
  }

  /** @param {Prior | null} prior */
  showPrior(prior) {
    this._priorLayer.clearLayers();
    if (prior === null) return;
    const style = { radius: prior.radius_m, className: "prior-circle", interactive: false, weight: 2 };
    this._priorLayer.addLayer(L.circle(this._place(prior), style));
  }

  /**
   * Highlight one match, or none.
   * @param {number | null} rank
   */
  point(rank) {
    this._markers.point(rank);
  }

  /** @param {number} rank */
  goTo(rank) {
    const place = this._markers.placeOf(rank);
    if (place !== null) this._map.panInside(place, { padding: [60, 60], animate: !this._still });
  }

  /** The fix with its radius, and the matches around it. */
  fitFix() {
    const answer = this._answer;
    if (answer === null || answer.fix === null) {
      this.fitMatches();
      return;
    }
    const { fix } = answer;
    const box = this._place(fix).toBounds(2 * fix.radius_m);
    // One match far away must not shrink the rest to a dot.
    const near = Math.max(300, 4 * fix.radius_m);
    for (const match of answer.matches) if (distanceM(match, fix) <= near) box.extend(this._place(match));
    this._fit(box);
  }

  fitMatches() {
    const matches = this._answer?.matches ?? [];
    if (matches.length === 0) this.fitIndex();
    else this._fit(L.latLngBounds(matches.map((match) => this._place(match))));
  }

  fitIndex() {
    if (this._bounds !== null) this._fit(this._indexBox());
  }

  /** @param {any} box */
  _fit(box) {
    this._fitted = box;
    // Leaflet caches the map's size, which the answer above it has just changed.
    this._map.invalidateSize({ animate: false, pan: false });
    // A single position has no extent: zoom in so far that ten metres are visible.
    this._map.fitBounds(box, { padding: [34, 34], maxZoom: 20, animate: !this._still });
  }

  _resized() {
    this._map.invalidateSize({ animate: false });
    if (this._fitted !== null) this._map.fitBounds(this._fitted, { padding: [34, 34], maxZoom: 20, animate: false });
  }

  _indexBox() {
    const { lat_min, lat_max, lon_min, lon_max } = /** @type {Bounds} */ (this._bounds);
    return L.latLngBounds([lat_min, lon_min], [lat_max, lon_max < lon_min ? lon_max + 360 : lon_max]);
  }

  /** @param {{lat: number, lon: number}} position */
  _place({ lat, lon }) {
    const near = this._bounds === null ? lon : this._indexBox().getCenter().lng;
    return L.latLng(lat, longitudeNear(lon, near));
  }
}
