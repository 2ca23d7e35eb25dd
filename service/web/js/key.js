// The API key, where the server requires one: kept for this tab, sent to this server only.

import { byId, capitalized } from "./dom.js";

const NAME = "sightfix-key";
/** @type {string | null} */
let key = null;
try {
  key = sessionStorage.getItem(NAME);
} catch {
  // Storage may be forbidden; the key is then kept until the page is left.
}

/** Headers that carry the key. @returns {Record<string, string>} */
export function keyHeaders() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Whether there is a key. */
export function hasKey() {
  return Boolean(key);
}

/**
 * Let the user give, change and remove the key.
 * @param {() => void} onChange
 */
export function startKey(onChange) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const form = /** @type {HTMLFormElement} */ (byId("key-form"));
  const field = /** @type {HTMLInputElement} */ (form.elements.namedItem("key"));
  byId("key-button").addEventListener("click", () => askForKey());
  byId("key-close").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", () => {
    key = field.value.trim() || null;
    field.value = "";
    try {
      if (key) sessionStorage.setItem(NAME, key);
      else sessionStorage.removeItem(NAME);
    } catch {
      // As above.
    }
    onChange();
  });
  if (key) offerKey();
}

/** Show that this server uses keys. */
export function offerKey() {
  byId("key-button").hidden = false;
}

/**
 * Open the dialog.
 * @param {string} [why] it is needed again
 */
export function askForKey(why = "") {
  offerKey();
  byId("key-why").textContent = capitalized(why);
  byId("key-why").hidden = why === "";
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  if (!dialog.open) dialog.showModal();
}
