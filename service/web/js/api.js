// Requests to the server, and the types of its answers, which docs/reference/http.md describes. Every address is below
// this page's own, so that it also works behind a path prefix.

import { keyHeaders } from "./key.js";

/**
 * @typedef {{lat_min: number, lat_max: number, lon_min: number, lon_max: number}} Bounds
 *
 * @typedef {object} Fix
 * @property {number} lat
 * @property {number} lon
 * @property {number} radius_m
 * @property {number} confidence
 * @property {boolean} calibrated
 * @property {string} method
 * @property {number} support
 *
 * @typedef {object} Match
 * @property {number} rank
 * @property {string} reference_id
 * @property {number} lat
 * @property {number} lon
 * @property {number} score cosine
 * @property {number | null} heading
 * @property {string | null} captured_at
 * @property {string | null} session
 * @property {string | null} thumbnail
 *
 * @typedef {{name: string, fingerprint: string, precision: string, provider: string, runtime: string, device: string}} Model
 * @typedef {{name: string, version: string, size: number, type: string}} Index
 *
 * @typedef {object} Answer
 * @property {string} request_id
 * @property {"LOCATED" | "AMBIGUOUS" | "NO_MATCH"} status
 * @property {Fix | null} fix
 * @property {Match[]} matches
 * @property {Model} model
 * @property {Index} index
 * @property {Record<string, number>} timings_ms
 *
 * @typedef {object} Info
 * @property {string} sightfix_version
 * @property {Model} model
 * @property {string[]} passed_over
 * @property {Index} index
 * @property {Bounds} bounds
 * @property {string | null} last_swap
 * @property {Record<string, number>} limits
 *
 * @typedef {object} Job
 * @property {string} id
 * @property {string} kind
 * @property {string} index
 * @property {string} state
 * @property {{done: number, total: number | null, failed: number, eta_s: number | null}} progress
 * @property {string | null} waiting_for
 * @property {string} created_at
 * @property {{detail?: string, code?: string} | null} error
 *
 * @typedef {object} Options
 * @property {number} top_k
 * @property {number | null} min_score
 * @property {{lat: number, lon: number, radius_m: number} | null} prior
 */

/** An error: the server's problem details (RFC 9457), or a failure to reach it. */
export class Problem extends Error {
  /**
   * @param {{title: string, detail: string, status?: number, code?: string, requestId?: string | null,
   *          retryAfterS?: number | null, errors?: {pointer: string, message: string}[]}} problem
   */
  constructor({ title, detail, status = 0, code = "", requestId = null, retryAfterS = null, errors = [] }) {
    super(`${title}: ${detail}`);
    Object.assign(this, { title, detail, status, code, requestId, retryAfterS, errors });
  }
}

/** @param {string} path */
const addressOf = (path) => new URL(path, document.baseURI).href;

const unreachable = () =>
  new Problem({
    title: "The server cannot be reached",
    detail: "It does not run, or the network is down. Nothing was lost: try again.",
    code: "unreachable",
  });

/**
 * A problem from an error answer, which may also come from a proxy.
 * @param {number} status
 * @param {string} text
 * @param {(name: string) => string | null} header
 */
function problemOf(status, text, header) {
  /** @type {any} */
  let told = {};
  try {
    told = JSON.parse(text) ?? {};
  } catch {
    told = {};
  }
  const words = (/** @type {unknown} */ value, /** @type {string} */ otherwise) =>
    typeof value === "string" && value !== "" ? value : otherwise;
  const retryAfter = Number.parseFloat(header("retry-after") ?? "");
  return new Problem({
    title: words(told.title, `HTTP ${status}`),
    detail: words(told.detail, "The answer does not say why."),
    status,
    code: words(told.code, ""),
    requestId: header("x-request-id"),
    retryAfterS: Number.isFinite(retryAfter) ? retryAfter : null,
    errors: Array.isArray(told.errors) ? told.errors : [],
  });
}

/**
 * GET some JSON.
 * @param {string} path
 * @param {{accept?: number[]}} [options] error statuses whose body is returned
 * @returns {Promise<any>}
 * @throws {Problem}
 */
export async function getJson(path, { accept = [] } = {}) {
  let response;
  try {
    response = await fetch(addressOf(path), { headers: { Accept: "application/json", ...keyHeaders() }, cache: "no-store" });
  } catch {
    throw unreachable();
  }
  const text = await response.text().catch(() => "");
  if (!response.ok && !accept.includes(response.status)) {
    throw problemOf(response.status, text, (name) => response.headers.get(name));
  }
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem({ title: "Not an answer", detail: "The server did not answer with JSON.", status: response.status });
  }
}

/**
 * Where a thumbnail is, if it is one of this server.
 * @param {string | null} thumbnail as in a match
 * @returns {string | null}
 */
export function thumbnailAddress(thumbnail) {
  if (!thumbnail) return null;
  const address = new URL(thumbnail.replace(/^\/+/, "./"), document.baseURI);
  return address.origin === location.origin && address.protocol.startsWith("http") ? address.href : null;
}

/**
 * A thumbnail's bytes, where the browser's own request could not send the key.
 * @param {string} address
 * @returns {Promise<Blob>}
 */
export async function getBlob(address) {
  const response = await fetch(address, { headers: keyHeaders() });
  if (!response.ok) throw problemOf(response.status, "", () => null);
  return response.blob();
}

/**
 * Localize a photo.
 * @param {Blob} photo
 * @param {string} mediaType to declare; the server checks the bytes
 * @param {Options} options
 * @param {{signal: AbortSignal, onSent: (share: number) => void}} way `onSent` from 0 to 1
 * @returns {Promise<Answer>}
 * @throws {Problem | DOMException} AbortError when the signal fires
 */
export function localize(photo, mediaType, options, { signal, onSent }) {
  const query = new URLSearchParams({ top_k: String(options.top_k) });
  if (options.min_score !== null) query.set("min_score", String(options.min_score));
  if (options.prior) query.set("geo_prior", [options.prior.lat, options.prior.lon, options.prior.radius_m].join(","));
  return new Promise((resolve, reject) => {
    // Not fetch: it does not report how much has been sent.
    const request = new XMLHttpRequest();
    request.open("POST", addressOf(`localize?${query}`));
    request.setRequestHeader("Content-Type", mediaType);
    request.setRequestHeader("Accept", "application/json");
    for (const [name, value] of Object.entries(keyHeaders())) request.setRequestHeader(name, value);
    const abort = () => request.abort();
    signal.addEventListener("abort", abort);
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) onSent(event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => onSent(1));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    request.addEventListener("error", () => reject(unreachable()));
    request.addEventListener("load", () => {
      if (request.status !== 200) {
        reject(problemOf(request.status, request.responseText, (name) => request.getResponseHeader(name)));
        return;
      }
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new Problem({ title: "Not an answer", detail: "The server did not answer with JSON.", status: 200 }));
      }
    });
    request.addEventListener("loadend", () => signal.removeEventListener("abort", abort));
    if (signal.aborted) request.abort();
    else request.send(photo);
  });
}
