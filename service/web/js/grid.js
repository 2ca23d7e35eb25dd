// The background of the map: a grid of metres around the index's centre, which needs no tiles and no internet.

import { METRES_PER_DEGREE } from "./geo.js";
import { el } from "./dom.js";

const L = globalThis.L;
const WIDE_PX = 90;

/**
 * The smallest of 1, 2, 5, 10, 20 … that is not smaller.
 * @param {number} value
 */
export function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 5].find((factor) => factor * power >= value * 0.999) ?? 10);
}

/**
 * The label of a line: metres, or kilometres where the step is as wide.
 * @param {number} metres
 * @param {number} step
 * @param {string} positive such as E
 * @param {string} negative such as W
 */
export function lineText(metres, step, positive, negative) {
  if (metres === 0) return "0";
  const far = Math.abs(metres);
  return `${step >= 1000 ? `${far / 1000} km` : `${far} m`} ${metres > 0 ? positive : negative}`;
}

/** Lines and their labels; `setOrigin` says where zero is. */
export const MetreGrid = L.Layer.extend({
  /** @this any */
  onAdd(map) {
    const pane = map.getPane("grid") ?? map.createPane("grid");
    // Below tiles, which cover it where they load.
    pane.style.zIndex = "150";
    // Drawn half a view beyond the edges, so that a drag does not run out of lines.
    this._lines = L.layerGroup().addTo(map);
    this._renderer = L.svg({ pane: "grid", padding: 0.5 });
    this._labels = el("div", { class: "grid-labels", "aria-hidden": "true" });
    map.getContainer().append(this._labels);
    map.on("moveend zoomend resize", this._draw, this);
    map.on("move", this._label, this);
    map.on("zoomstart", this._hideLabels, this);
    this._draw();
  },

  /** @this any */
  onRemove(map) {
    map.off("moveend zoomend resize", this._draw, this);
    map.off("move", this._label, this);
    map.off("zoomstart", this._hideLabels, this);
    this._lines.remove();
    this._labels.remove();
  },

  /** @this any */
  setOrigin(lat, lon) {
    this._origin = { lat, lon };
    if (this._map) this._draw();
  },

  /** @this any */
  _draw() {
    const map = this._map;
    this._lines.clearLayers();
    if (!this._origin || !map._loaded) return;
    const { lat, lon } = this._origin;
    const eastDegree = METRES_PER_DEGREE * Math.max(Math.cos((lat * Math.PI) / 180), 0.01);
    const seen = map.getBounds();
    const drawn = seen.pad(0.5);
    const metresWide = (seen.getEast() - seen.getWest()) * eastDegree;
    const step = niceStep((metresWide / Math.max(map.getSize().x, 1)) * WIDE_PX);
    const style = { renderer: this._renderer, interactive: false, weight: 1 };
    const { south, north } = { south: Math.max(drawn.getSouth(), -85), north: Math.min(drawn.getNorth(), 85) };
    this._step = step;
    this._columns = [];
    this._rows = [];
    const each = (from, to, degree, add) => {
      for (let n = Math.ceil((from * degree) / step); n <= Math.floor((to * degree) / step); n++) add(n * step);
    };
    each(drawn.getWest() - lon, drawn.getEast() - lon, eastDegree, (east) => {
      const at = lon + east / eastDegree;
      this._columns.push({ at, metres: east });
      this._lines.addLayer(L.polyline([[south, at], [north, at]], { ...style, className: lineClass(east) }));
    });
    each(south - lat, north - lat, METRES_PER_DEGREE, (northing) => {
      const at = lat + northing / METRES_PER_DEGREE;
      this._rows.push({ at, metres: northing });
      const ends = [[at, drawn.getWest()], [at, drawn.getEast()]];
      this._lines.addLayer(L.polyline(ends, { ...style, className: lineClass(northing) }));
    });
    this._label();
  },

  /** @this any */
  _label() {
    if (!this._columns) return;
    const map = this._map;
    const size = map.getSize();
    const labels = [];
    const add = (kind, text, x, y) => {
      const label = el("span", { class: kind }, text);
      label.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
      labels.push(label);
    };
    const centre = map.getCenter();
    for (const { at, metres } of this._columns) {
      const { x } = map.latLngToContainerPoint([centre.lat, at]);
      if (x > 60 && x < size.x - 64) add("column-label", lineText(metres, this._step, "E", "W"), x, 0);
    }
    for (const { at, metres } of this._rows) {
      const { y } = map.latLngToContainerPoint([at, centre.lng]);
      if (y > 24 && y < size.y - 12) add("row-label", lineText(metres, this._step, "N", "S"), size.x, y);
    }
    this._labels.replaceChildren(...labels);
  },

  /** @this any */
  _hideLabels() {
    this._labels.replaceChildren();
  },
});

const lineClass = (/** @type {number} */ metres) => (metres === 0 ? "grid-line grid-zero" : "grid-line");
