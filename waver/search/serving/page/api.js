// Sends requests to the server, formats times, and creates elements.

export const films = (index, window) => ({
  video: `/videos/${index}/${window}`,
  preview: `/previews/${index}/${window}.mp4`,
  thumbnail: `/thumbnails/${index}/${window}.jpg`,
});

/** Requests JSON; throws an Error whose message is a sentence for the user. */
export async function request(address, parameters = {}, options = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== false);
  let response;
  try {
    response = await fetch(`${address}?${new URLSearchParams(given)}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is waver serve still running?");
  }
  if (!response.ok) throw new Error(await sentence(response));
  return response.json();
}

export const judge = (query, result, verdict) => request("/api/verdicts", {}, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ query, index: result.index, window: result.window, verdict }),
});

/** Returns a sentence that says why a request failed. */
export async function sentence(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).detail;
  } catch {
    return text.trim() || `The server answers with status ${response.status}.`;
  }
}

/** Returns seconds as 1:02:03.5. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  const minutes = Math.floor(tenths / 600) % 60;
  const hours = Math.floor(tenths / 36000);
  const text = `${rest < 10 ? "0" : ""}${rest}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${text}` : `${minutes}:${text}`;
}

export const span = ({ start_s, end_s }) =>
  start_s === null ? "whole video" : `${clock(start_s)} – ${end_s === null ? "end" : clock(end_s)}`;

/** Creates an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
