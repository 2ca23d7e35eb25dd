// All elements of this page are made here. Text stays text: nothing from a server or a file is parsed as HTML.

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean | null | undefined>} [attributes] left out where null or false
 * @param {...(Node | string | null)} children strings become text
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * Make a button.
 * @param {string} text
 * @param {() => void} onClick
 * @param {string} [className]
 * @returns {HTMLButtonElement}
 */
export function button(text, onClick, className = "") {
  const made = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: className || null }, text));
  made.addEventListener("click", onClick);
  return made;
}

/**
 * An element of the page that exists.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return /** @type {T} */ (found);
}

/**
 * Announce something to screen readers.
 * @param {string} text
 */
export function announce(text) {
  byId("announcer").textContent = text;
}

/**
 * A message of the server as a sentence: its messages begin in lower case.
 * @param {string} text
 */
export function capitalized(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
