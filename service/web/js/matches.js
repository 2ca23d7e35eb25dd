// The list of matches. Each is a button that opens the photo and highlights its marker on the map.

import { getBlob, thumbnailAddress } from "./api.js";
import { byId, el } from "./dom.js";
import { coordinatesText, distanceM, metresText } from "./geo.js";
import { hasKey } from "./key.js";

/**
 * @typedef {import("./api.js").Answer} Answer
 * @typedef {import("./api.js").Match} Match
 */

export class MatchList {
  /** @param {{onPoint: (rank: number | null) => void, onChoose: (rank: number) => void}} handlers */
  constructor(handlers) {
    this._handlers = handlers;
    /** @type {Map<number, HTMLElement>} */
    this._buttons = new Map();
    /** @type {string[]} */
    this._blobs = [];
    this._generation = 0;
  }

  /** @param {Answer | null} answer */
  show(answer) {
    this._generation += 1;
    for (const address of this._blobs.splice(0)) URL.revokeObjectURL(address);
    this._buttons.clear();
    const matches = answer?.matches ?? [];
    byId("matches-none").hidden = matches.length > 0;
    byId("matches-none").textContent = answer === null ? "None yet." : "None.";
    byId("matches-ghosts").hidden = answer !== null;
    byId("matches-count").textContent = matches.length > 0 ? `${matches.length}` : "";
    byId("matches").replaceChildren(...matches.map((match) => this._item(match, answer?.fix ?? null)));
    byId("matches").scrollTop = 0;
    void this._loadWithKey(matches, this._generation);
  }

  /**
   * Highlight one match, or none.
   * @param {number | null} rank
   */
  point(rank) {
    for (const [other, button] of this._buttons) button.classList.toggle("pointed", other === rank);
  }

  /**
   * Bring one into view and open it, as after a click on its marker.
   * @param {number} rank
   */
  reveal(rank) {
    const button = this._buttons.get(rank);
    if (button === undefined) return;
    this._open(button, true);
    button.focus({ preventScroll: true });
    button.scrollIntoView({ block: "nearest" });
  }

  /**
   * @param {Match} match
   * @param {import("./api.js").Fix | null} fix
   */
  _item(match, fix) {
    const facts = [el("span", {}, "score ", el("b", {}, match.score.toFixed(3)))];
    if (fix !== null) facts.push(el("span", {}, el("b", {}, metresText(distanceM(match, fix))), " from fix"));
    const about = [timeText(match.captured_at), match.session].filter(Boolean).join(", ");
    const button = el(
      "button",
      { type: "button", class: "match", "aria-expanded": "false" },
      this._thumbnail(match),
      el("span", { class: "rank" }, el("span", { class: "unseen" }, "Match "), `${match.rank}`),
      el(
        "span",
        { class: "facts" },
        el("span", { class: "numbers" }, ...facts),
        about ? el("span", { class: "about" }, about) : null,
        el("span", { class: "reference" }, match.reference_id),
        el("span", { class: "more" }, coordinatesText(match) + headingText(match.heading)),
      ),
    );
    button.addEventListener("click", () => {
      this._open(button, button.getAttribute("aria-expanded") !== "true");
      this._handlers.onChoose(match.rank);
    });
    const { onPoint } = this._handlers;
    for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => onPoint(match.rank));
    for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => onPoint(null));
    this._buttons.set(match.rank, button);
    return el("li", {}, button);
  }

  /**
   * @param {HTMLElement} button
   * @param {boolean} open
   */
  _open(button, open) {
    for (const other of this._buttons.values()) other.setAttribute("aria-expanded", String(other === button && open));
  }

  /** @param {Match} match */
  _thumbnail(match) {
    const frame = el("span", { class: "thumbnail" });
    const address = thumbnailAddress(match.thumbnail);
    // The text beside it is its description.
    const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
    const missing = () => frame.replaceChildren(el("span", { class: "no-photo" }, "no photo"));
    if (address === null) missing();
    else {
      image.addEventListener("error", missing);
      frame.append(image);
      if (hasKey()) image.dataset.address = address;
      else image.setAttribute("src", address);
    }
    return frame;
  }

  /**
   * A picture's own request cannot show the API key, so it is made here, one at a time.
   * @param {Match[]} matches
   * @param {number} generation
   */
  async _loadWithKey(matches, generation) {
    for (const match of matches) {
      const image = this._buttons.get(match.rank)?.querySelector("img");
      const address = image?.dataset.address;
      if (!image || !address) continue;
      const blob = await getBlob(address).catch(() => null);
      if (generation !== this._generation) return;
      if (blob === null) {
        image.dispatchEvent(new Event("error"));
        continue;
      }
      const local = URL.createObjectURL(blob);
      this._blobs.push(local);
      image.src = local;
    }
  }
}

/**
 * When a photo was taken, by its own clock: many have no time zone, so none is converted.
 * @param {string | null} text ISO 8601
 */
export function timeText(text) {
  const found = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*(Z|[+-][\d:]+)?$/.exec(text ?? "");
  if (!found) return text ?? "";
  return `${found[1]} ${found[2]}${found[3] === "Z" ? " UTC" : (found[3] ?? "")}`;
}

/** @param {number | null} heading degrees clockwise from true north */
export function headingText(heading) {
  if (heading === null) return "";
  const names = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west"];
  return `, looking ${names[Math.round((((heading % 360) + 360) % 360) / 45) % 8]} (${Math.round(heading)}°)`;
}
