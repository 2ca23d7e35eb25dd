// The answer as text: status, position, radius and confidence.

import { announce, button, byId, el } from "./dom.js";
import { coordinatesText, geoUri, metresText } from "./geo.js";

/**
 * @typedef {import("./api.js").Answer} Answer
 * @typedef {import("./api.js").Options} Options
 */

const NAMES = { LOCATED: "Located", AMBIGUOUS: "Ambiguous", NO_MATCH: "No match" };

/**
 * A status as text.
 * @param {Answer} answer
 * @param {Options} options what was asked
 */
export function meaning(answer, options) {
  if (answer.status === "LOCATED") {
    return "Most of the matches agree on one place. A photo from elsewhere may be located too: compare the photos.";
  }
  if (answer.status === "AMBIGUOUS") {
    return "The matches do not agree; the fix is only the best guess. Compare the photos.";
  }
  const reasons = [];
  if (options.prior) reasons.push("no reference photo lies inside the circle");
  if (options.min_score !== null) reasons.push("no reference photo reaches the minimum score");
  const why = reasons.join(", or ") || "no reference photo is like this one";
  return `${why[0].toUpperCase()}${why.slice(1)}. So there is no fix.`;
}

/**
 * Show an answer.
 * @param {Answer} answer
 * @param {Options} options what was asked
 * @param {number} tookMs measured in the page
 */
export function showAnswer(answer, options, tookMs) {
  const badge = byId("answer-status");
  badge.dataset.status = answer.status;
  badge.textContent = NAMES[answer.status] ?? answer.status;
  badge.hidden = false;
  const { fix, matches } = answer;
  const parts = [
    ...(fix === null ? [] : fixParts(fix, matches.length)),
    el("p", {}, meaning(answer, options)),
    ...(fix === null ? [] : [trustPart(fix)]),
    detailsPart(answer, tookMs),
  ];
  byId("answer-body").replaceChildren(...parts);
  announce(spoken(answer));
}

/** Remove the answer. */
export function clearAnswer() {
  byId("answer-status").hidden = true;
  byId("answer-body").replaceChildren(el("p", { class: "muted" }, "No answer yet."));
}

/**
 * @param {import("./api.js").Fix} fix
 * @param {number} count of the matches
 */
function fixParts(fix, count) {
  const coordinates = el("span", { class: "coordinates" }, coordinatesText(fix));
  const copy = button("Copy", async () => {
    // Browsers give a clipboard to pages over https or from this machine only.
    const written = navigator.clipboard?.writeText(coordinatesText(fix)).then(() => true, () => false);
    const done = (await written) ?? false;
    if (!done) getSelection()?.selectAllChildren(coordinates);
    copy.textContent = done ? "Copied" : "Selected";
    announce(done ? "Coordinates copied" : "Coordinates selected; the browser does not allow this page to copy them");
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  }, "inline");
  copy.setAttribute("aria-label", "Copy the coordinates");
  const figures = [
    ["Radius, 68 %", `± ${metresText(fix.radius_m)}`],
    ["Confidence, 25 m", fix.confidence.toFixed(2)],
    ["Supporting matches", `${fix.support} of ${count}`],
  ];
  return [
    el(
      "p",
      { class: "where" },
      coordinates,
      copy,
      el("a", { class: "inline phone-only", href: geoUri(fix, fix.radius_m) }, "Open in a map app"),
    ),
    el("dl", { class: "figures" }, ...figures.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
  ];
}

/** @param {import("./api.js").Fix} fix */
function trustPart({ calibrated }) {
  return calibrated
    ? el("p", { class: "small" }, "The truth lies within the radius 68 % of the time, and within 25 m with the probability given as confidence.")
    : el("p", { class: "small warning" }, "Radius and confidence are not calibrated: they describe how the matches are spread.");
}

/**
 * @param {Answer} answer
 * @param {number} tookMs
 */
function detailsPart({ request_id, fix, index, model, timings_ms }, tookMs) {
  const { total, ...stages } = timings_ms;
  const rows = [
    ["Stages", Object.entries(stages).map(([name, ms]) => `${name} ${msText(ms)}`).join(", ")],
    ["Index", `${index.name}, version ${index.version}, ${index.size} reference photos, ${index.type}`],
    ["Model", `${model.name}, ${model.precision}, ${model.provider} (${model.device})`],
    ["Method", fix?.method ?? "none"],
    ["Request", request_id],
  ];
  const list = el("dl", { class: "rows" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  const summary = `Answered in ${msText(tookMs)}, ${msText(total ?? 0)} of them in the server`;
  return el("details", { class: "small" }, el("summary", {}, summary), list);
}

/** @param {number} ms */
const msText = (ms) => `${ms < 9.95 ? ms.toFixed(1) : ms.toFixed(0)} ms`;

/** @param {Answer} answer */
function spoken({ status, fix, matches }) {
  const count = matches.length === 1 ? "1 match" : `${matches.length} matches`;
  if (fix === null) return `${NAMES[status] ?? status}. ${count}.`;
  return `${NAMES[status] ?? status}: ${coordinatesText(fix)}, plus or minus ${metresText(fix.radius_m)}. ${count}.`;
}
