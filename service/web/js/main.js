// Connects the parts of the page: a photo is chosen and sent, and its answer is shown in all of them.

import { clearAnswer, showAnswer } from "./answer.js";
import { getJson, localize, Problem } from "./api.js";
import { announce, byId } from "./dom.js";
import { askForKey, hasKey, startKey } from "./key.js";
import { PlaceMap } from "./map.js";
import { MatchList } from "./matches.js";
import { OptionsForm } from "./options.js";
import { limitText, Preview, startPhotoSources, uploadOf } from "./photo.js";
import { clearProblem, showProblem } from "./problem_box.js";
import { ServerState } from "./server_state.js";
import { startTheme } from "./theme.js";

/** @type {File | null} */
let photo = null;
/** @type {AbortController | null} */
let running = null;

const preview = new Preview();

const map = new PlaceMap(byId("map"), {
  onPoint: (rank) => point(rank),
  onChoose: (rank) => matches.reveal(rank),
  onClick: (lat, lon) => options.wantsClicks && options.setCentre(lat, lon),
});

const matches = new MatchList({ onPoint: (rank) => point(rank), onChoose: (rank) => map.goTo(rank) });

const options = new OptionsForm({
  onChange: (prior) => map.showPrior(prior),
  onSubmit: () => void ask(),
  centre: () => map.centre,
});

const server = new ServerState({
  onInfo: (info) => {
    map.showIndex(info.bounds);
    buttonOf("show-index").disabled = false;
    byId("limit-text").textContent = `, up to\u00a0${limitText(info.limits.max_image_bytes)}`;
  },
  onReady: () => waitingForReady?.(),
});

/** @type {(() => void) | null} */
let waitingForReady = null;

/** @param {number | null} rank */
function point(rank) {
  map.point(rank);
  matches.point(rank);
}

/** @param {string} id @returns {HTMLButtonElement} */
function buttonOf(id) {
  return byId(id);
}

/** @param {File} file */
function take(file) {
  photo = file;
  buttonOf("ask-again").disabled = false;
  void preview.show(file);
  void ask();
}

/** Send the photo and show the answer. A newer photo replaces one that is being sent. */
async function ask() {
  if (photo === null) return;
  const asked = options.read();
  if (asked === null) return;
  running?.abort();
  const mine = new AbortController();
  running = mine;
  clearProblem();
  clearResult();
  showProgress(null, "Reading the photo");
  try {
    await untilReady(mine.signal);
    if (server.wantsKey && !hasKey()) throw keyWanted();
    const upload = await uploadOf(photo, server.info?.limits ?? null);
    mine.signal.throwIfAborted();
    const begun = performance.now();
    const answer = await localize(upload.photo, upload.mediaType, asked, {
      signal: mine.signal,
      onSent: (share) => showProgress(share < 1 ? share : null, share < 1 ? `Sending, ${Math.round(share * 100)} %` : "Waiting for the answer"),
    });
    showAnswer(answer, asked, performance.now() - begun);
    map.showAnswer(answer);
    matches.show(answer);
    byId("progress").hidden = true;
    bringIntoView(byId("answer"));
    buttonOf("show-fix").disabled = answer.fix === null;
    buttonOf("show-matches").disabled = answer.matches.length === 0;
    if (upload.note !== null) byId("preview-caption").append(` ${upload.note}`);
  } catch (error) {
    if (running !== mine) return;
    if (error instanceof DOMException && error.name === "AbortError") announce("Cancelled");
    else if (error instanceof Problem) failed(error);
    else throw error;
  } finally {
    if (running === mine) {
      running = null;
      byId("progress").hidden = true;
    }
  }
}

/** A problem that is known before the photo is sent. */
const keyWanted = () =>
  new Problem({ title: "This server requires an API key", detail: "The photo was not sent yet.", status: 401, code: "unauthenticated" });

/**
 * Scroll to a part that is not visible: on a phone the answer is below the photo.
 * @param {HTMLElement} part
 */
function bringIntoView(part) {
  if (part.getBoundingClientRect().top < window.innerHeight * 0.7) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  part.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

/** @param {Problem & any} problem */
function failed(problem) {
  // A problem of the photo is permanent; one of the server, the network or the key may not be.
  const worthRetrying = problem.status === 0 || problem.status === 429 || problem.status >= 500;
  const ours = problem.code === "too_large_here";
  showProblem(problem, (worthRetrying || problem.status === 401) && !ours ? () => void ask() : null);
  if (problem.status === 401) askForKey(hasKey() ? problem.detail : "");
  if (problem.status >= 500 || problem.status === 0) void server.ask();
}

/**
 * Wait while the server is not ready.
 * @param {AbortSignal} signal
 */
function untilReady(signal) {
  if (server.ready !== false) return Promise.resolve();
  showProgress(null, "The server is not ready; the photo is sent as soon as it is");
  return new Promise((resolve, reject) => {
    waitingForReady = () => resolve(undefined);
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

/**
 * @param {number | null} share 0 to 1, null if unknown
 * @param {string} text
 */
function showProgress(share, text) {
  const bar = /** @type {HTMLProgressElement} */ (byId("progress-bar"));
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  byId("progress-text").textContent = text;
  byId("progress").hidden = false;
}

function clearResult() {
  clearAnswer();
  map.showAnswer(null);
  matches.show(null);
  buttonOf("show-fix").disabled = true;
  buttonOf("show-matches").disabled = true;
}

startTheme(buttonOf("theme-button"));
startKey(() => {
  server.forget();
  if (photo !== null && !byId("problem").hidden) void ask();
});
startPhotoSources(take);
byId("cancel").addEventListener("click", () => running?.abort());
byId("show-fix").addEventListener("click", () => map.fitFix());
byId("show-matches").addEventListener("click", () => map.fitMatches());
byId("show-index").addEventListener("click", () => map.fitIndex());
// Without an answer the map stays a grid; the server's state shows the problem.
const settings = await getJson("static/page.json").catch(() => ({ tiles: null, jobs: true }));
if (settings.tiles) map.showTiles(settings.tiles);
server.start(settings.jobs);
