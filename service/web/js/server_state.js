// The server's state: readiness, index and jobs. Polled while the page is visible.

import { getJson, Problem } from "./api.js";
import { byId, capitalized, el } from "./dom.js";
import { distanceM, metresText } from "./geo.js";
import { hasKey, offerKey } from "./key.js";

/**
 * @typedef {import("./api.js").Info} Info
 * @typedef {import("./api.js").Job} Job
 */

const READY_EVERY_MS = 15_000;
const NOT_READY_EVERY_MS = 2_000;
const JOBS_RUN_EVERY_MS = 3_000;
const ACTIVE = ["PENDING", "RUNNING", "PUBLISHING", "CANCELLING"];

export class ServerState {
  /** @param {{onInfo: (info: Info) => void, onReady: () => void}} handlers */
  constructor(handlers) {
    this._handlers = handlers;
    /** @type {Info | null} */
    this.info = null;
    /** @type {boolean | null} whether it answered so; null before the first answer */
    this.ready = null;
    /** Whether it requires an API key and has not accepted the current one. */
    this.wantsKey = false;
    this._hasJobs = false;
    /** Whether this key may list them. */
    this._jobs = true;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._timer = undefined;
    this._asking = false;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void this.ask();
    });
  }

  /** @param {boolean} hasJobs whether the server has jobs to show */
  start(hasJobs) {
    this._hasJobs = hasJobs;
    void this.ask();
  }

  /** Ask now, and again later. */
  async ask() {
    if (this._asking) return;
    this._asking = true;
    clearTimeout(this._timer);
    let again = NOT_READY_EVERY_MS;
    try {
      again = await this._askOnce();
    } finally {
      this._asking = false;
    }
    // A hidden page does not poll; it polls at once when it becomes visible.
    this._timer = setTimeout(() => document.hidden || void this.ask(), again);
  }

  /** Ask again with another key, also for what was forbidden before. */
  forget() {
    this._jobs = true;
    void this.ask();
  }

  /** @returns {Promise<number>} when to ask again, milliseconds */
  async _askOnce() {
    try {
      const readiness = await getJson("readyz", { accept: [503] });
      if (readiness.state !== "ready") {
        this._notReady(readiness.state, readiness.reason);
        return NOT_READY_EVERY_MS;
      }
      const info = /** @type {Info} */ (await getJson("info"));
      this._isReady(info);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      return this._failed(error);
    }
    return (await this._askJobs()) ? JOBS_RUN_EVERY_MS : READY_EVERY_MS;
  }

  /** @param {Info} info */
  _isReady(info) {
    this.info = info;
    this.wantsKey = false;
    const { index } = info;
    showState("ready", `${index.name}, ${index.size.toLocaleString("en")} photos`);
    byId("banner").hidden = true;
    showServer(info);
    this._handlers.onInfo(info);
    if (this.ready !== true) {
      this.ready = true;
      this._handlers.onReady();
    }
  }

  /**
   * @param {string} state
   * @param {string | null} reason
   */
  _notReady(state, reason) {
    this.ready = false;
    showState("waiting", state ?? "not ready");
    showBanner(`The server is not ready (${state ?? "unknown"})${reason ? `: ${reason}` : ""}. This page asks again by itself.`);
  }

  /**
   * @param {Problem & any} problem
   * @returns {number}
   */
  _failed(problem) {
    if (problem.status === 401 || problem.status === 403) {
      // It can still be ready.
      this.wantsKey = problem.status === 401;
      offerKey();
      showState("waiting", "requires an API key");
      const wrong = problem.status === 403 || hasKey();
      showBanner(`${wrong ? `${capitalized(problem.detail)} Press` : "This server requires an API key: press"} “API key” above.`);
      return READY_EVERY_MS;
    }
    this.ready = false;
    showState("failed", problem.code === "unreachable" ? "cannot be reached" : problem.title);
    showBanner(`${problem.title}. ${problem.detail}`);
    return NOT_READY_EVERY_MS;
  }

  /** @returns {Promise<boolean>} whether one is running */
  async _askJobs() {
    const part = byId("jobs-part");
    if (!this._hasJobs || !this._jobs) return false;
    /** @type {Job[]} */
    let jobs = [];
    try {
      jobs = (await getJson("jobs?page_size=5")).jobs ?? [];
    } catch (error) {
      // Forbidden for this key.
      if (error instanceof Problem && [401, 403, 404].includes(/** @type {any} */ (error).status)) this._jobs = false;
    }
    part.hidden = jobs.length === 0;
    byId("jobs").replaceChildren(...jobs.map(jobItem));
    return jobs.some(({ state }) => ACTIVE.includes(state));
  }
}

/**
 * @param {string} kind of the dot: ready, waiting, failed
 * @param {string} text
 */
function showState(kind, text) {
  byId("state").dataset.state = kind;
  byId("state-text").textContent = text;
}

/** @param {string} text */
function showBanner(text) {
  const banner = byId("banner");
  // Announced once, not every two seconds.
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = false;
}

/** @param {Info} info */
function showServer({ index, model, bounds, last_swap, sightfix_version }) {
  const rows = [
    ["Index", `${index.name}, ${index.size.toLocaleString("en")} reference photos, ${index.type}`],
    ["Version", index.version],
    ["Area", areaText(bounds)],
    ["Model", `${model.name}, ${model.precision}`],
    ["Computes on", `${model.provider}: ${model.device}, ${model.runtime}`],
    ["sightfix", sightfix_version],
  ];
  byId("server").replaceChildren(
    ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
  const warning = byId("server-warning");
  warning.hidden = !last_swap;
  warning.textContent = last_swap ? `The version published last is not served: ${last_swap}` : "";
}

/** @param {import("./api.js").Bounds} bounds */
function areaText({ lat_min, lat_max, lon_min, lon_max }) {
  const east = lon_max < lon_min ? lon_max + 360 : lon_max;
  const lat = (lat_min + lat_max) / 2;
  const half = { lat, lon: lon_min + (east - lon_min) / 2 };
  const width = 2 * distanceM({ lat, lon: lon_min }, half);
  return `${metresText(width)} × ${metresText(distanceM({ lat: lat_min, lon: 0 }, { lat: lat_max, lon: 0 }))}`;
}

/** @param {Job} job */
function jobItem(job) {
  const { done, total, failed, eta_s } = job.progress;
  const running = ACTIVE.includes(job.state);
  const words = [total === null ? null : `${done} of ${total} photos`, failed ? `${failed} could not be read` : null];
  if (running && eta_s !== null) words.push(`about ${Math.ceil(eta_s)} s left`);
  words.push(job.waiting_for, job.error?.detail ?? null);
  const label = `${job.kind} ${job.index}`;
  return el(
    "li",
    {},
    el("span", { class: "job-state", "data-state": job.state }, job.state.toLowerCase()),
    ` ${label} `,
    running && total ? el("progress", { max: total, value: done, "aria-label": `Progress of ${label}` }) : null,
    el("span", { class: "small" }, ` ${words.filter(Boolean).join(", ")}`),
  );
}
