// Positions on the sphere, and their text forms.

/** Metres in a degree of latitude on the sphere of the server's haversine. */
export const METRES_PER_DEGREE = (Math.PI / 180) * 6_371_008.8;

/** @typedef {{lat: number, lon: number}} Position */

/**
 * Distance in metres (haversine).
 * @param {Position} a
 * @param {Position} b
 */
export function distanceM(a, b) {
  const radians = Math.PI / 180;
  const half = (/** @type {number} */ degrees) => Math.sin((degrees * radians) / 2) ** 2;
  const chord = half(b.lat - a.lat) + Math.cos(a.lat * radians) * Math.cos(b.lat * radians) * half(b.lon - a.lon);
  return 2 * 6_371_008.8 * Math.asin(Math.min(1, Math.sqrt(chord)));
}

/**
 * The same longitude, whole turns away, nearest to another: places on both sides of the antimeridian stay together.
 * @param {number} lon
 * @param {number} near
 */
export function longitudeNear(lon, near) {
  return lon + 360 * Math.round((near - lon) / 360);
}

/**
 * A distance as text.
 * @param {number} metres
 */
export function metresText(metres) {
  if (metres < 9.95) return `${metres.toFixed(1)} m`;
  if (metres < 9_995) return `${Math.round(metres)} m`;
  return `${(metres / 1000).toFixed(metres < 99_500 ? 1 : 0)} km`;
}

/**
 * Latitude and longitude as text; six digits are a decimetre.
 * @param {Position} position
 */
export function coordinatesText({ lat, lon }) {
  return `${lat.toFixed(6)}, ${lon.toFixed(6)}`;
}

/**
 * A geo URI (RFC 5870) with its uncertainty, which map apps open.
 * @param {Position} position
 * @param {number} radiusM
 */
export function geoUri({ lat, lon }, radiusM) {
  return `geo:${lat.toFixed(6)},${lon.toFixed(6)};u=${Math.round(radiusM)}`;
}
