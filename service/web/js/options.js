// The options: number of matches, minimum score, search circle.

import { byId } from "./dom.js";

/** @typedef {import("./api.js").Options} Options */

export class OptionsForm {
  /** @param {{onChange: (prior: Options["prior"]) => void, onSubmit: () => void, centre: () => {lat: number, lon: number}}} handlers */
  constructor(handlers) {
    this._form = /** @type {HTMLFormElement} */ (byId("options"));
    this._handlers = handlers;
    this._form.addEventListener("input", () => this._changed());
    this._form.addEventListener("submit", (event) => {
      event.preventDefault();
      handlers.onSubmit();
    });
    const useMapCentre = () => {
      const { lat, lon } = handlers.centre();
      this.setCentre(lat, lon);
    };
    byId("prior-centre").addEventListener("click", useMapCentre);
    byId("use-prior").addEventListener("change", () => {
      if (this.wantsClicks && this._field("prior_lat").value === "") useMapCentre();
    });
    this._changed();
  }

  /** Whether a click on the map sets the circle's centre. */
  get wantsClicks() {
    return this._field("use_prior").checked;
  }

  /**
   * @param {number} lat
   * @param {number} lon
   */
  setCentre(lat, lon) {
    this._field("prior_lat").value = lat.toFixed(6);
    this._field("prior_lon").value = lon.toFixed(6);
    this._changed();
  }

  /** The options, or null after showing what is wrong. @returns {Options | null} */
  read() {
    if (!this._form.checkValidity()) {
      /** @type {HTMLDetailsElement} */ (byId("options-details")).open = true;
      this._form.reportValidity();
      return null;
    }
    const score = this._field("min_score").value;
    return { top_k: this._field("top_k").valueAsNumber, min_score: score === "" ? null : Number(score), prior: this.prior };
  }

  /** The circle, if it is complete. */
  get prior() {
    const [lat, lon, radius] = ["prior_lat", "prior_lon", "prior_radius_m"].map((name) => this._field(name));
    const complete = this.wantsClicks && [lat, lon, radius].every((field) => field.validity.valid && field.value !== "");
    return complete ? { lat: lat.valueAsNumber, lon: lon.valueAsNumber, radius_m: radius.valueAsNumber } : null;
  }

  _changed() {
    byId("prior-fields").hidden = !this.wantsClicks;
    byId("legend-prior").hidden = !this.wantsClicks;
    // Hidden fields must not be required.
    for (const name of ["prior_lat", "prior_lon", "prior_radius_m"]) this._field(name).disabled = !this.wantsClicks;
    const parts = [];
    if (this._field("top_k").value !== "10") parts.push(`${this._field("top_k").value} matches`);
    if (this._field("min_score").value !== "") parts.push(`score from ${this._field("min_score").value}`);
    if (this.wantsClicks) parts.push("inside a circle");
    byId("options-summary").textContent = parts.join(", ");
    this._handlers.onChange(this.prior);
  }

  /**
   * @param {string} name
   * @returns {HTMLInputElement}
   */
  _field(name) {
    return /** @type {HTMLInputElement} */ (this._form.elements.namedItem(name));
  }
}
