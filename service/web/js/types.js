// What the server answers; docs/reference/http.md says it in words.

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

export {};
