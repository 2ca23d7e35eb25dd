// The markers of the matches. Where several are on one spot, the best is shown with the number of those under it.

import { el } from "./dom.js";

const L = globalThis.L;

/** Markers nearer than this overlap. */
const APART_PX = 24;

/**
 * @typedef {import("./api.js").Match} Match
 * @typedef {{match: Match, marker: any, sign: HTMLElement, view: HTMLElement, more: HTMLElement, under: number[]}} Shown
 */

export class MatchMarkers {
  /**
   * @param {any} map of Leaflet
   * @param {{onPoint: (rank: number | null) => void, onChoose: (rank: number) => void}} handlers
   * @param {(position: {lat: number, lon: number}) => any} placeOf
   */
  constructor(map, handlers, placeOf) {
    this._map = map;
    this._handlers = handlers;
    this._placeOf = placeOf;
    this._layer = L.layerGroup().addTo(map);
    // Views lie below all signs, whoever's they are.
    map.createPane("views").style.zIndex = "590";
    /** @type {Map<number, Shown>} */
    this._shown = new Map();
    /** @type {number | null} */
    this._pointed = null;
    /** @type {number | null} */
    this._chosen = null;
    map.on("zoomend", () => this._arrange());
  }

  /** @param {Match[]} matches best first */
  show(matches) {
    this._layer.clearLayers();
    this._shown.clear();
    this._pointed = this._chosen = null;
    for (const match of matches) this._add(match);
    this._arrange();
  }

  /**
   * Make one stand out, or none.
   * @param {number | null} rank
   */
  point(rank) {
    this._pointed = rank;
    for (const shown of this._shown.values()) this._raise(shown);
  }

  /**
   * Where one is.
   * @param {number} rank
   */
  placeOf(rank) {
    return this._shown.get(rank)?.marker.getLatLng() ?? null;
  }

  /** @param {Match} match */
  _add(match) {
    const view = el("span", { class: "match-view" });
    const more = el("span", { class: "match-more", hidden: true });
    const sign = el("span", { class: "match-sign" }, el("b", {}, `${match.rank}`), more);
    const icon = (/** @type {HTMLElement} */ html) => L.divIcon({ className: "match-marker", html, iconSize: [24, 24] });
    const place = this._placeOf(match);
    // The list is where the keyboard goes: a hundred stops more on the map would help nobody.
    const marker = L.marker(place, { icon: icon(sign), keyboard: false });
    const shown = { match, marker, sign, view, more, under: [] };
    if (match.heading !== null) {
      view.style.transform = `rotate(${match.heading}deg)`;
      this._layer.addLayer(L.marker(place, { icon: icon(view), pane: "views", interactive: false, keyboard: false }));
    }
    marker.on("mouseover", () => this._handlers.onPoint(match.rank));
    marker.on("mouseout", () => this._handlers.onPoint(null));
    marker.on("click", () => this._choose(shown));
    // Leafing on quickly is no wish to zoom in.
    marker.on("dblclick", L.DomEvent.stop);
    this._layer.addLayer(marker);
    this._shown.set(match.rank, shown);
    this._raise(shown);
  }

  /**
   * Choose a sign, or on and on those that lie under it.
   * @param {Shown} shown
   */
  _choose(shown) {
    const pile = [shown.match.rank, ...shown.under];
    const next = (pile.indexOf(this._chosen ?? Number.NaN) + 1) % pile.length;
    this._chosen = pile[next];
    this._handlers.onChoose(this._chosen);
  }

  /** Pile up what cannot be told apart at this zoom. */
  _arrange() {
    /** @type {{shown: Shown, at: any}[]} */
    const tops = [];
    for (const shown of this._shown.values()) {
      const at = this._map.latLngToLayerPoint(shown.marker.getLatLng());
      const top = tops.find((other) => other.at.distanceTo(at) < APART_PX);
      shown.under = [];
      shown.sign.classList.toggle("under", top !== undefined);
      if (top === undefined) tops.push({ shown, at });
      else top.shown.under.push(shown.match.rank);
    }
    for (const shown of this._shown.values()) {
      const count = shown.under.length;
      shown.more.hidden = count === 0;
      shown.more.textContent = `+${count}`;
      shown.sign.title = count === 0 ? `Match ${shown.match.rank}` : `Matches ${[shown.match.rank, ...shown.under].join(", ")}`;
    }
  }

  /** @param {Shown} shown */
  _raise({ match, marker, sign, view }) {
    const pointed = match.rank === this._pointed;
    sign.classList.toggle("pointed", pointed);
    view.classList.toggle("pointed", pointed);
    // Leaflet orders signs from north to south; these stand by rank, whatever their place.
    marker.setZIndexOffset(pointed ? 3e5 : 2e5 - 1e3 * match.rank);
  }
}
