// Errors: what went wrong, the request's id in the server's log, and when to try again.

import { button, byId, capitalized, el } from "./dom.js";
import { askForKey } from "./key.js";

/** @typedef {import("./api.js").Problem & any} Problem */

/** @type {ReturnType<typeof setInterval> | undefined} */
let countdown;

/** Remove the error. */
export function clearProblem() {
  clearInterval(countdown);
  byId("problem").hidden = true;
  byId("problem").replaceChildren();
}

/**
 * Show an error.
 * @param {Problem} problem
 * @param {(() => void) | null} retry
 */
export function showProblem(problem, retry) {
  clearProblem();
  const box = byId("problem");
  const fields = problem.errors.map((/** @type {any} */ error) => el("li", {}, `${error.pointer}: ${error.message}`));
  const number = problem.status ? `${problem.status} ${problem.code}` : "";
  box.append(
    el("h3", {}, problem.title),
    el("p", {}, capitalized(problem.detail)),
  );
  if (fields.length > 1) box.append(el("ul", {}, ...fields));
  if (number) box.append(el("p", { class: "small" }, number));
  if (problem.requestId) box.append(el("p", { class: "small" }, "Request ", el("code", {}, problem.requestId)));
  const buttons = el("div", { class: "buttons" });
  if (problem.status === 401) buttons.append(button("Enter an API key", () => askForKey(), "primary"));
  if (retry !== null) buttons.append(retryButton(problem, retry));
  if (buttons.childElementCount > 0) box.append(buttons);
  box.hidden = false;
}

/**
 * A button that is disabled for as long as the server asks for.
 * @param {Problem} problem
 * @param {() => void} retry
 */
function retryButton(problem, retry) {
  const made = button("Try again", retry);
  let left = Math.ceil(problem.retryAfterS ?? 0);
  if (left <= 0) return made;
  const show = () => {
    made.disabled = left > 0;
    made.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
  };
  countdown = setInterval(() => {
    left -= 1;
    show();
    if (left <= 0) clearInterval(countdown);
  }, 1000);
  show();
  return made;
}
