// The photo: chosen, taken, dropped or pasted; shown; and made smaller only where it is over the server's limits.

import { Problem } from "./api.js";
import { byId } from "./dom.js";

const MEDIA_TYPES = ["image/jpeg", "image/png", "image/webp", "image/heic", "image/heif"];
// Far above what any model takes, far below any server's limits.
const SHRUNK_SIDES = [4096, 2560, 1600, 1024];

/**
 * @typedef {object} Upload
 * @property {Blob} photo
 * @property {string} mediaType
 * @property {string | null} note what was done to it
 */

/**
 * A number of bytes as text.
 * @param {number} bytes
 */
export function bytesText(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 999_500 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(bytes < 9.95e6 ? 1 : 0)} MB`;
}

/**
 * A limit in bytes as text, rounded down.
 * @param {number} bytes
 */
export function limitText(bytes) {
  return bytes < 1e6 ? `${Math.floor(bytes / 1e3)}\u00a0kB` : `${Math.floor(bytes / 1e6)}\u00a0MB`;
}

/**
 * Take photos that are chosen, taken, dropped or pasted.
 * @param {(file: File) => void} onPhoto
 */
export function startPhotoSources(onPhoto) {
  for (const [buttonId, inputId] of [["choose", "file"], ["take", "camera"]]) {
    const input = /** @type {HTMLInputElement} */ (byId(inputId));
    byId(buttonId).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const file = input.files?.[0];
      input.value = ""; // so that the same photo can be chosen again
      if (file) onPhoto(file);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (file) onPhoto(file);
  });
  const hint = byId("drop-hint");
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
  // Entering a child leaves its parent, so count.
  let inside = 0;
  const end = () => {
    inside = 0;
    hint.hidden = true;
  };
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    inside += 1;
    hint.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (hasFiles(event) && --inside <= 0) end();
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    end();
    const file = event.dataTransfer?.files[0];
    if (file) onPhoto(file);
  });
}

/** Shows the photo, if the browser can. */
export class Preview {
  constructor() {
    this._image = /** @type {HTMLImageElement} */ (byId("preview-image"));
    /** @type {string | null} */
    this._address = null;
  }

  /** @param {File} file */
  async show(file) {
    if (this._address !== null) URL.revokeObjectURL(this._address);
    this._address = URL.createObjectURL(file);
    byId("preview").hidden = false;
    byId("drop").classList.add("filled");
    byId("drop-text").textContent = "Another: drop it, paste it, or";
    byId("preview-caption").textContent = `${file.name || "pasted photo"}, ${bytesText(file.size)}`;
    this._image.src = this._address;
    const seen = await this._image.decode().then(() => true, () => false);
    this._image.hidden = !seen;
    byId("preview-none").hidden = seen;
  }
}

/**
 * What to send. As it is, wherever the server takes it: its own decoder is the one that the index was made with.
 *
 * A photo over the limits is drawn smaller. The browser turns it upright by its EXIF orientation first, and the smaller
 * one carries no metadata, so nobody turns it twice.
 * @param {File} file
 * @param {Record<string, number> | null} limits from /info
 * @returns {Promise<Upload>}
 * @throws {Problem} it is too large and this browser cannot decode it
 */
export async function uploadOf(file, limits) {
  const maxBytes = limits?.max_image_bytes ?? Infinity;
  const maxPixels = limits?.max_pixels ?? Infinity;
  const asItIs = { photo: file, mediaType: declaredType(file), note: null };
  const pixels = Number.isFinite(maxPixels) ? await pixelsOf(file) : null;
  if (file.size <= maxBytes && (pixels ?? 0) <= maxPixels) return asItIs;
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (bitmap !== null) {
    try {
      for (const side of SHRUNK_SIDES) {
        const photo = await drawnSmaller(bitmap, side);
        if (photo.size > maxBytes) continue;
        const note = `It is larger than this server takes, so a smaller copy was sent (${bytesText(photo.size)}).`;
        return { photo, mediaType: "image/jpeg", note };
      }
    } finally {
      bitmap.close();
    }
  }
  throw new Problem({
    title: "The photo is too large",
    detail: `It has ${bytesText(file.size)}; this server takes ${limitText(maxBytes)} and ${Math.round(maxPixels / 1e6)} megapixels, ` +
      "and this browser cannot make it smaller.",
    code: "too_large_here",
  });
}

/** @param {File} file */
function declaredType(file) {
  if (MEDIA_TYPES.includes(file.type)) return file.type;
  // Some systems do not know HEIC. Anything else: the server recognises formats by their bytes.
  return /\.hei[cf]$/i.test(file.name) ? "image/heic" : "image/jpeg";
}

/**
 * How many pixels a photo has, or null where the browser cannot read it.
 * @param {File} file
 */
async function pixelsOf(file) {
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    const known = new Promise((resolve, reject) => {
      image.addEventListener("load", resolve);
      image.addEventListener("error", reject);
    });
    image.src = address;
    await known;
    return image.naturalWidth * image.naturalHeight;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} side longest, pixels
 * @returns {Promise<Blob>}
 */
function drawnSmaller(bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the canvas gave no image"))), "image/jpeg", 0.9);
  });
}
